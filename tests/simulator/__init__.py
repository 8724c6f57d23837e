"""A simulated GPU: minires' CUDA path on the CPU, for machines without a GPU.

`with simulator.gpu() as gpu:` replaces CuPy by a small stand-in. Arrays live "on the device". The .cu files are
compiled (by g++, through cuda_on_cpu.h) and run thread by thread. Matrix products go through the ctypes binding to a
cuBLAS written in NumPy. Streams can be captured into graphs. The simulator is slow. The simulator is strict where a
real GPU would be silent or merely slow:

    host arrays, float64 and implicit conversions to NumPy are refused on the device
    new memory is full of NaN, and memory that a graph has freed is handed out again
    launches, copies and synchronisations are counted: `gpu.launches`, `gpu.copies`, `gpu.synchronisations`

The simulator is a test double and lies among the tests: users of an installed minires do not need it. A checkout
imports it by `from tests import simulator`, and so does the check of a GPU: `examples/measure/gpu_check.py --device
cpu` tries without a GPU the script that must work on rented minutes. A reader can put a printf into a kernel on a
laptop. The simulator needs g++, and ml_dtypes for bfloat16.

Reading order: after minires/cuda. Next: cuda_on_cpu.h, compiler.py, fake_cupy.py and fake_cublas.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from minires.cuda import blas, launch
from minires.device import cuda
from tests.simulator import fake_cupy
from tests.simulator.compiler import why_not
from tests.simulator.fake_cublas import FakeCublas
from tests.simulator.fake_cupy import Gpu

__all__ = ["Gpu", "gpu", "why_not"]


@contextmanager
def gpu(memory_bytes: int = 8 << 30, reverse: bool = False, capability: tuple[int, int] = (9, 0)) -> Iterator[Gpu]:
    """Inside, `cupy` is the simulated module and the device "cuda" is usable. Raises `RuntimeError` without g++.

    memory_bytes  memory of the device: allocating more raises OutOfMemoryError
    reverse       run the threads of each block, and the blocks, in the opposite order
    capability    the compute capability that the device reports
    """
    if why_not():
        raise RuntimeError(f"the simulated GPU is not usable: {why_not()}")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "cupy" or name.startswith("cupy.")}
    probe = cuda._reason, cuda._probed
    gpu = Gpu(memory_bytes, reverse, capability)
    sys.modules["cupy"] = fake_cupy.module(gpu)
    cuda._reason, cuda._probed = None, True
    launch.program.cache_clear()
    blas.library, real = FakeCublas, blas.library
    blas.close()
    try:
        yield gpu
    finally:
        del sys.modules["cupy"]
        sys.modules.update(hidden)
        cuda._reason, cuda._probed = probe
        launch.program.cache_clear()
        blas.library = real
        blas.close()
