"""Which kernels do the array work: the one place where a room is chosen.

A room is a module with the functions of reference.py, under the same names, with the same arguments and
results. `of(array)` gives the room for an array; the choice is made from the array's device and dtype and
from what `use(...)` or the environment variable MINIRES_KERNELS asks for:

    auto        the fastest room that takes the array (default)
    reference   plain array expressions, everywhere, on the GPU too

On a GPU the precision is chosen here as well: `use_precision("tf32")`.

Reading order: after functional/convolution.py. Next: geometry.py.
"""

from __future__ import annotations

import os
from types import ModuleType

from minires.device import Array, device_of
from minires.kernels import cpu, cuda, reference
from minires.kernels.cuda import precision as cuda_precision

CHOICES = ("auto", "reference")
PRECISIONS = cuda_precision.CHOICES
default_precision = cuda_precision.default


def use(choice: str) -> None:
    """Ask for `"auto"` or `"reference"` kernels from now on. Raises `ValueError` for anything else."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"kernels: {choice!r} is unknown, expected one of {', '.join(CHOICES)}")
    _choice = choice


def use_precision(choice: str) -> None:
    """Compute in `"fp32"` (default), `"tf32"` or `"bf16"` on the GPU; kernels/cuda/precision.py says what they mean.

    Raises `ValueError` for anything else, and `RuntimeError` with the reason where this GPU cannot, or bf16 lacks
    ml_dtypes.
    """
    cuda_precision.use(choice)


def of(array: Array, *others: Array | None) -> ModuleType:
    """The kernel module for `array`: cpu or cuda, by its device, for float32 and uint8 (cuda: bfloat16 too), reference
    for all else. `others` are what it will be computed with: `ValueError` if they are on another device."""
    device = device_of(array)
    for other in others:
        if other is not None and device_of(other) != device:
            raise ValueError(
                f"arrays on different devices meet: {array.shape} on {device!r}, {other.shape} on "
                f"{device_of(other)!r}; move the model or its input by .to({device!r})"
            )
    if _choice != "auto" or array.dtype.name not in _FAST[device] or array.size == 0:
        return reference  # an empty batch too: no kernel has to think of it
    return cpu if device == "cpu" else cuda


def for_light_work(array: Array, *others: Array | None) -> ModuleType:
    """The same, for what costs nothing on a CPU (vectors of statistics, the classifier) and is the reference's there.

    On a GPU even that has to be few launches, and such as a CUDA graph can record.
    """
    room = of(array, *others)
    return reference if room is cpu else room


def fuses_branches(array: Array) -> bool:
    """Whether the room for `array` computes a whole residual branch as one operation (functional/branch.py)."""
    return of(array) is not reference


def in_use(device: str = "cpu") -> str:
    """The name of the room that float32 arrays on `device` get."""
    return device if _choice == "auto" else "reference"


_FAST = {"cpu": ("float32", "uint8"), "cuda": ("float32", "uint8", "bfloat16")}


_choice = "auto"
use(os.environ.get("MINIRES_KERNELS", "auto"))
