"""CUDA C to a shared library that the CPU runs: g++, cuda_on_cpu.h, and a stub for each kernel.

Reading order: after cuda_on_cpu.h. Next: fake_cupy.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from minires.cuda.launch import Parameter, parse

HERE = Path(__file__).parent
COMPILER = "g++"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=off")
NUMBERS = {"float": ctypes.c_float, "int": ctypes.c_int, "long long": ctypes.c_longlong}
WAITS = ("__syncthreads", "__shfl_xor_sync", "emulated_mma")  # calls that make threads depend on each other


def why_not() -> str | None:
    """Why kernels cannot be compiled for the CPU here, or None."""
    return None if shutil.which(COMPILER) else f"there is no {COMPILER}"


@cache
def build(text: str) -> ctypes.CDLL:
    """`text`, a .cu file with its includes, as a library with `run_NAME` for each kernel. Libraries are cached. Raises
    `RuntimeError` with the compiler's message."""
    code = f'#include "cuda_on_cpu.h"\n{text}\n' + "".join(_stub(*kernel, text) for kernel in parse(text).items())
    digest = hashlib.sha256((code + (HERE / "cuda_on_cpu.h").read_text() + str(FLAGS)).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("MINIRES_SIMULATOR_CACHE") or Path(tempfile.gettempdir()) / f"minires-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        temporary = folder / f"{digest}.{os.getpid()}"
        command = [COMPILER, *FLAGS, f"-I{HERE}", "-xc++", "-", "-o", str(temporary)]
        done = subprocess.run(command, input=code, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{COMPILER} does not compile the kernels: {done.stderr[:2000]}")
        os.replace(temporary, library)  # two processes may build the same file
    return ctypes.CDLL(str(library))


def _stub(name: str, parameters: list[Parameter], text: str) -> str:
    """A C function that takes the launch shape and the arguments one by one."""
    declared = re.search(rf"void(?: __launch_bounds__\([\w, ]+\))? {name}\((.*?)\) \{{", text, re.DOTALL)[1]
    declared = ", ".join(re.sub(r",?\s*(//.*)?$", "", line).strip() for line in declared.strip().splitlines())
    names = ", ".join(p.name for p in parameters)
    values = ", ".join(f"_v.{p.name}" for p in parameters)
    return (
        f"struct _Values_{name} {{ {declared.replace(', ', '; ')}; }};\n"
        f'extern "C" void run_{name}(const unsigned* _shape, int _backwards, {declared}) {{\n'
        f"    _Values_{name} _values = {{ {names} }};\n"
        f"    auto _thread = [](void* _p) {{ _Values_{name}& _v = *(_Values_{name}*)_p; {name}({values}); }};\n"
        f"    cpu::launch(_shape, {int(waits(name, text))}, _backwards, _thread, &_values);\n}}\n"
    )


def waits(kernel: str, text: str) -> bool:
    """Whether the threads of `kernel` wait for each other, in the kernel or in a function that the kernel calls."""
    # A function begins at the start of a line. It ends with a brace at the end of that line, or at the start of another
    # one. A template or macro counts as a function too.
    text = re.sub(r"__launch_bounds__\([\w, ]+\)", "", text)
    pattern = r"^(?:extern|__device__|template|static)[^;{]*?(\w+)\([^;{]*?\{([^\n]*\}$|.*?^\})"
    functions = dict(re.findall(pattern, text, re.M | re.S))
    waiting = set(WAITS)
    while True:
        more = {name for name, body in functions.items() if name not in waiting and _mentions(body, waiting)}
        if not more:
            return kernel in waiting
        waiting |= more


def _mentions(body: str, names: set[str]) -> bool:
    return bool(names & set(re.findall(r"\w+", body)))


def function(text: str, name: str, reverse: bool) -> Callable[[Sequence[int], Sequence[int], Sequence], None]:
    """call(grid, block, values): run kernel `name`; values are numbers, or addresses for pointers."""
    parameters = parse(text)[name]
    run = getattr(build(text), f"run_{name}")
    types = [ctypes.c_void_p if p.shape is not None else NUMBERS[p.type] for p in parameters]
    run.argtypes, run.restype = [ctypes.POINTER(ctypes.c_uint), ctypes.c_int, *types], None

    def call(grid: Sequence[int], block: Sequence[int], values: Sequence) -> None:
        shape = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        run((ctypes.c_uint * 6)(*shape), int(reverse), *values)

    return call
