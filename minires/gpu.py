"""Whether a GPU is usable, and if not, the reason in words.

Reading order: any time; device.py asks here.
"""

from __future__ import annotations

import sys
from types import ModuleType


class cuda:
    """The state of the GPU: `cuda.is_available()`, `cuda.why_not()` in words, and `cuda.capability()`."""

    _reason: str | None = None
    _probed = False

    @classmethod
    def is_available(cls) -> bool:
        """Whether CuPy is installed and one real kernel has run on a GPU."""
        return cls.why_not() is None

    @classmethod
    def why_not(cls) -> str | None:
        """The reason why the GPU is unusable, as one line; None for a usable GPU. Probes once."""
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
    needed = 12000  # until CuPy says which CUDA it was made for
    try:
        runtime = cupy.cuda.runtime
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()  # 12090 for CUDA 12.9
        if driver == 0:
            return "CuPy is installed, but no NVIDIA driver is (`nvidia-smi` has to list the GPU)"
        if driver // 1000 < needed // 1000:  # all versions with one major number work together
            return (
                f"the NVIDIA driver is too old: it can do CUDA {_version(driver)}, CuPy was made for "
                f"{_version(needed)}; update the driver, or install the CuPy for it (cupy-cuda11x, cupy-cuda12x, ...)"
            )
        if runtime.getDeviceCount() == 0:
            return "CuPy is installed, but there is no NVIDIA GPU"
        # Without NVRTC or the CUDA headers every check passes except a real compilation.
        cupy.RawKernel('extern "C" __global__ void probe(float* x) { x[0] = 7.0f; }', "probe")(
            (1,), (1,), (value := cupy.zeros(1, cupy.float32),)
        )
        if float((value + value)[0]) != 14.0:
            return "a test kernel ran on the GPU and gave a wrong result"
    except Exception as error:  # every CUDA library has its own exception class
        if "gpu-architecture" in str(error):  # NVRTC 13 has dropped GPUs older than 7.5
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
