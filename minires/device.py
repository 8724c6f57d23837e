"""Which array library an array lives in: probing for a GPU, moving arrays, seeding.

Every other file of minires is written against `xp`, the module an array belongs to: `numpy` on the
CPU, `cupy` on an NVIDIA GPU. The two offer the same functions, so one source serves both. CuPy is
imported only when somebody asks for the GPU.

Reading order: after data/. Next: tensor.py.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray


def module_of(array: Array) -> ModuleType:
    """The array library of `array`: `numpy`, or `cupy` for an array on the GPU.

    Named `xp` where it is used. Python numbers and lists count as NumPy's.
    """
    if type(array).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]  # it made the array, so it is imported
    return np


def device_of(array: Array) -> str:
    """`"cpu"` or `"cuda"`."""
    return "cpu" if module_of(array) is np else "cuda"


def to_device(array: Array, device: str) -> Array:
    """`array` on `device` (`"cpu"` or `"cuda"`); the same array when it is there already.

    Raises `ValueError` for an unknown device and `RuntimeError`, with the reason, for an unusable GPU.
    """
    check_device(device)
    if device == device_of(array):
        return array
    return module_of(array).asnumpy(array) if device == "cpu" else sys.modules["cupy"].asarray(array)


def check_device(device: str) -> None:
    """Raise unless `device` is `"cpu"`, or `"cuda"` with a usable GPU."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: {device!r} is unknown, expected 'cpu' or 'cuda'")
    if device == "cuda" and not cuda.is_available():
        raise RuntimeError(f"device 'cuda' is not usable: {cuda.why_not()}")


class cuda:
    """What is known about the GPU: `cuda.is_available()`, in words `cuda.why_not()`, and `cuda.capability()`."""

    _reason: str | None = None
    _probed = False

    @classmethod
    def is_available(cls) -> bool:
        """Whether CuPy is installed and one real kernel has run on a GPU."""
        return cls.why_not() is None

    @classmethod
    def why_not(cls) -> str | None:
        """The reason why the GPU cannot be used, as one line, or None when it can. Probes once."""
        if not cls._probed:
            cls._reason, cls._probed = _probe(), True
        return cls._reason

    @classmethod
    def capability(cls) -> tuple[int, int] | None:
        """The compute capability of the GPU in use, such as (9, 0) for an H100; None without a usable GPU."""
        return _capability(sys.modules["cupy"]) if cls.is_available() else None


def _capability(cupy: ModuleType) -> tuple[int, int]:
    text = cupy.cuda.Device().compute_capability  # "90"; "120" for 12.0
    return int(text[:-1]), int(text[-1])


def _probe() -> str | None:
    try:
        import cupy
    except Exception as error:  # a broken CUDA install raises more than ImportError
        how = f"{_install(12)}, or, for CUDA 13, {_install(13)}"
        return f"CuPy does not import ({_one_line(error)}); install it with: {how}"
    try:
        runtime = cupy.cuda.runtime
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()  # 12090 for CUDA 12.9
        if driver == 0:
            return "CuPy is installed, but no NVIDIA driver is"
        if driver // 1000 < needed // 1000:  # within one major version all work together
            return (
                f"the NVIDIA driver is too old: it can do CUDA {_version(driver)}, CuPy was made for "
                f"{_version(needed)}; update the driver, or install the CuPy for it (cupy-cuda11x, cupy-cuda12x, ...)"
            )
        if runtime.getDeviceCount() == 0:
            return "CuPy is installed, but there is no NVIDIA GPU"
        # A driver without NVRTC or without the CUDA headers passes every check but a real compilation.
        cupy.RawKernel('extern "C" __global__ void probe(float* x) { x[0] = 7.0f; }', "probe")(
            (1,), (1,), (value := cupy.zeros(1, cupy.float32),)
        )
        if float((value + value)[0]) != 14.0:
            return "a test kernel ran on the GPU and gave a wrong result"
    except Exception as error:  # every CUDA library has its own exception class
        if "gpu-architecture" in str(error):  # NVRTC 13 has dropped what is older than 7.5
            major, minor = _capability(cupy)
            return (
                f"this GPU, of compute capability {major}.{minor}, is too old for CUDA {_version(needed)}; install the "
                f"CuPy for an older one: pip uninstall cupy-cuda{needed // 1000}x, then {_install(needed // 1000 - 1)}"
            )
        if any(sign in str(error) for sign in ("nvrtc", "NVRTC", "libcudart", ".h", "CUDA_PATH")):
            return (
                f"CuPy is installed, but cannot compile kernels: NVRTC or the CUDA headers are missing "
                f"({_one_line(error)}); install them with: {_install(needed // 1000)}"
            )
        return f"CuPy is installed, but the GPU does not work ({_one_line(error)})"
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _install(major: int) -> str:
    """The command that installs CuPy for CUDA 12 or 13, with NVIDIA's libraries."""
    return f"pip install 'cupy-cuda{major}x[ctk]'"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# Random numbers are drawn on the host and then moved: both devices start from the same weights,
# and cupy.random lacks the generators needed.
_generator = np.random.default_rng(0)


def manual_seed(seed: int) -> None:
    """Reset the default generator, from which layers draw their initial weights and dropout its masks."""
    global _generator
    _generator = np.random.default_rng(seed)


def default_generator() -> np.random.Generator:
    """The generator that `manual_seed` resets."""
    return _generator
