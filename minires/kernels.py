"""Which backend does the array work: the one place where it is chosen.

A backend is a module with the functions of reference.py, under the same names. It begins with `from minires.reference
import *`, overrides what it computes faster, and registers itself for a device and some dtypes. `of(array)` gives the
backend for an array. It goes by the array's device and dtype, and by what `use(...)` or the environment variable
MINIRES_KERNELS asks for:

    auto        the backend registered for the array's device, if it takes the array's dtype (default)
    reference   plain array expressions, everywhere, on the GPU too

Reading order: after reference.py. Next: functional/activation.py.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from types import ModuleType
from typing import Any

from minires import reference
from minires.device import Array, device_of

CHOICES = ("auto", "reference")
PRECISIONS = ("fp32", "tf32", "bf16")  # that a backend may offer; cuda/precision.py says what they mean

_backends: dict[str, tuple[ModuleType, Collection[str]]] = {}  # by device: the backend, and the dtypes that it takes
_choice = "auto"


def register(device: str, backend: ModuleType, dtypes: Collection[str]) -> None:
    """From now on `backend` computes arrays on `device` whose dtype has one of these names.

    Beside the functions of reference.py it may have parts that the reference lacks, see `part`.
    """
    _backends[device] = backend, dtypes


def use(choice: str) -> None:
    """Ask for `"auto"` or `"reference"` kernels from now on. Raises `ValueError` for anything else."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"kernels: {choice!r} is unknown, expected one of {', '.join(CHOICES)}")
    _choice = choice


def of(array: Array, *others: Array | None) -> ModuleType:
    """The backend for `array`; reference.py where none is registered that takes it.

    `others` are what it will be computed with: `ValueError` if they are on another device.
    """
    device = device_of(array)
    for other in others:
        if other is not None and device_of(other) != device:
            raise ValueError(
                f"arrays on different devices meet: {array.shape} on {device!r}, {other.shape} on "
                f"{device_of(other)!r}; move the model or its input by .to({device!r})"
            )
    backend, dtypes = _backends.get(device, (reference, ()))
    if _choice != "auto" or array.dtype.name not in dtypes or array.size == 0:
        return reference  # an empty batch too: no kernel has to think of it
    return backend


def part(name: str, device: str = "cpu") -> Any | None:
    """Something that a backend may have beside the functions of reference.py; None where the one in use lacks it.

        Step              a training step (train/loop.py)
        workspace_bytes   what a training step takes beside the tape's arrays, on a CPU (train/memory.py)
        step_bytes        what a training step takes, on a GPU (examples/train_cifar.py)
        pools_bytes       what has been taken beside CuPy's own pool (train/report.py)
        threads           how many it computes with (cli/info.py)

    The fused branches are the other such part: nn/branch.py asks for them.
    """
    return getattr(_backends[device][0], name, None) if in_use(device) != "reference" else None


def in_use(device: str = "cpu") -> str:
    """The name of the backend that float32 arrays on `device` get."""
    return device if _choice == "auto" and device in _backends else "reference"


def use_precision(choice: str) -> None:
    """Compute in `"fp32"` (default), `"tf32"` or `"bf16"` on the GPU; cuda/precision.py says what they mean.

    Raises `ValueError` for anything else, and `RuntimeError` with the reason where no backend can.
    """
    if choice not in PRECISIONS:
        raise ValueError(f"precision: {choice!r} is unknown, expected one of {', '.join(PRECISIONS)}")
    settings = _precision_settings()
    if settings is not None:
        settings.use(choice)
    elif choice != "fp32":
        raise RuntimeError(f"precision {choice!r}: no backend here offers it; use 'fp32'")


def default_precision(preferred: str | None = None) -> str:
    """What training on this GPU uses unless told otherwise: the first it can of `preferred`, "tf32" and "fp32"."""
    settings = _precision_settings()
    return "fp32" if settings is None else settings.default(preferred)


def precision_in_use() -> str:
    """What `use_precision` has chosen; "fp32" without a backend that has a choice."""
    settings = _precision_settings()
    return "fp32" if settings is None else settings.current


def _precision_settings() -> ModuleType | None:
    """The precision.py of the backend that has one."""
    found = (getattr(backend, "precision", None) for backend, _ in _backends.values())
    return next((settings for settings in found if settings is not None), None)


use(os.environ.get("MINIRES_KERNELS", "auto"))
