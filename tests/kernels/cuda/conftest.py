"""The simulated GPU for a test, and the precisions."""

from __future__ import annotations

import importlib.util
from collections import Counter
from contextlib import nullcontext

import pytest

from minires import kernels
from minires.kernels.cuda import simulator


@pytest.fixture
def gpu():
    """A simulated GPU: `import cupy` gives its CuPy."""
    if simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    with simulator.gpu() as gpu:
        yield gpu


class RealGpu:
    """In the place of a simulated one: it counts nothing."""

    launches, copies, synchronisations = Counter(), {}, 0

    def reset(self):
        pass


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def any_gpu(request):
    """The simulated GPU, and a real one where there is one; `isinstance(any_gpu, simulator.Gpu)` tells."""
    if request.param == "simulated" and simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    with simulator.gpu() if request.param == "simulated" else nullcontext(RealGpu()) as gpu:
        yield gpu


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def precision(request):
    """The name of a precision, in use."""
    if request.param == "bf16" and importlib.util.find_spec("ml_dtypes") is None:
        pytest.skip("ml_dtypes is not installed")
    kernels.use_precision(request.param)
    yield request.param
    kernels.use_precision("fp32")
