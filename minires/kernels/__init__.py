"""Which kernels do the array work: the one place where a room is chosen.

A room is a module with the functions of reference.py, under the same names, with the same arguments and
results. `of(array)` gives the room for an array; the choice is made from the array's device and dtype and
from what `use(...)` or the environment variable MINIRES_KERNELS asks for:

    auto        the fastest room that takes the array (default)
    reference   plain array expressions, everywhere

Reading order: after functional/convolution.py. Next: reference.py.
"""

from __future__ import annotations

import os
from types import ModuleType

import numpy as np

from minires.device import Array, module_of
from minires.kernels import cpu, reference

CHOICES = ("auto", "reference")


def use(choice: str) -> None:
    """Ask for `"auto"` or `"reference"` kernels from now on. Raises `ValueError` for anything else."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"kernels: {choice!r} is unknown, expected one of {', '.join(CHOICES)}")
    _choice = choice


def of(array: Array) -> ModuleType:
    """The kernel module for `array`: cpu for float32 and uint8 NumPy arrays, reference for all else."""
    fast = _choice == "auto" and module_of(array) is np and array.dtype in (np.float32, np.uint8)
    return cpu if fast else reference


def fuses_branches(array: Array) -> bool:
    """Whether the room for `array` computes a whole residual branch as one operation (functional/branch.py)."""
    return of(array) is cpu


def in_use(device: str = "cpu") -> str:
    """The name of the room that float32 arrays on `device` get."""
    return "cpu" if _choice == "auto" and device == "cpu" else "reference"


_choice = "auto"
use(os.environ.get("MINIRES_KERNELS", "auto"))
