"""The array library that an array belongs to: moving arrays, seeding.

Every other file of minires is written against `xp`, the module of an array: `numpy` on the CPU, `cupy` on an NVIDIA
GPU. The two offer the same functions: one source serves both. CuPy is imported only when the program asks for the GPU.

Reading order: first. Next: tensor.py.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from minires.gpu import cuda

Array = Any  # numpy.ndarray or cupy.ndarray


def module_of(array: Array) -> ModuleType:
    """The array library of `array`: `numpy`, or `cupy` for an array on the GPU.

    Callers name the result `xp`. Python numbers and lists count as NumPy's.
    """
    if type(array).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]  # imported: CuPy made the array
    return np


def device_of(array: Array) -> str:
    """`"cpu"` or `"cuda"`."""
    return "cpu" if module_of(array) is np else "cuda"


def to_device(array: Array, device: str) -> Array:
    """`array` on `device` (`"cpu"` or `"cuda"`); the same array if the device does not change.

    Raises `ValueError` for an unknown device and `RuntimeError`, with the reason, for an unusable GPU.
    """
    check_device(device)
    if device == device_of(array):
        return array
    return module_of(array).asnumpy(array) if device == "cpu" else sys.modules["cupy"].asarray(array)


def check_device(device: str) -> None:
    """Raise unless `device` is `"cpu"`, or `"cuda"` with a usable GPU."""
    if device not in ("cpu", "cuda"):
        hint = "; minires uses one GPU: write 'cuda'" if str(device).startswith("cuda:") else ""
        raise ValueError(f"device: {device!r} is unknown, expected 'cpu' or 'cuda'{hint}")
    if device == "cuda" and not cuda.is_available():
        raise RuntimeError(f"device 'cuda' is not usable: {cuda.why_not()}")


class OutOfMemory(MemoryError):
    """The device's memory is too small for a training step. The text is one line with the figures."""


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
