"""The registry of backends: the one place that chooses the code for the array work.

A backend is a module with the functions of reference.py, under the same names. The module begins with `from
minires.reference import *`, overrides what it computes faster, and registers itself for a device and some dtypes.
`of(array)` gives the backend for the array's device and dtype. `use(...)` or the environment variable MINIRES_KERNELS
sets the choice:

    auto        the backend registered for the array's device and dtype; else the reference (default)
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
PRECISIONS = ("fp32", "tf32", "bf16")  # that a backend may offer; cuda/precision.py defines them

_backends: dict[str, tuple[ModuleType, Collection[str]]] = {}  # by device: the backend and its dtypes
_choice = "auto"


def register(device: str, backend: ModuleType, dtypes: Collection[str]) -> None:
    """Let `backend` compute arrays on `device` with a dtype of one of these names.

    Beside the functions of reference.py a backend may have fused branches (nn/fused.py) and the parts of `part`.
    Raises `ValueError` for an unknown device, and for a backend that lacks a function of reference.py or one of the
    two fused branches.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"register: device {device!r} is unknown, expected 'cpu' or 'cuda'")
    name = getattr(backend, "__name__", repr(backend))
    written = [key for key, value in vars(reference).items() if getattr(value, "__module__", "") == reference.__name__]
    wanted = [key for key in [*written, "branch", "evaluate_branch"] if not key.startswith("_")]
    missing = [key for key in wanted if not hasattr(backend, key)]
    if missing:
        raise ValueError(
            f"register: {name} has no {', '.join(missing[:3])}; a backend begins with `from minires.reference import *`"
        )
    if (backend.branch is None) != (backend.evaluate_branch is None):
        raise ValueError(f"register: {name} has one of branch and evaluate_branch, expected both or neither")
    if isinstance(dtypes, str):
        raise ValueError(f"register: dtypes is {dtypes!r}, expected names, such as ({dtypes!r},)")
    _backends[device] = backend, tuple(dtypes)


def use(choice: str) -> None:
    """Use `"auto"` or `"reference"` kernels from now on. Raises `ValueError` for another choice."""
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"kernels: {choice!r} is unknown, expected one of {', '.join(CHOICES)}")
    _choice = choice


def of(array: Array, *others: Array | None) -> ModuleType:
    """The backend for `array`; reference.py if no registered backend takes the array.

    `others` are the other operands. Raises `ValueError` if one is on another device.
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
        return reference  # an empty batch too: no kernel handles that case
    return backend


def part(name: str, device: str = "cpu") -> Any | None:
    """An optional part of a backend, beside the functions of reference.py; None if the backend in use lacks it.

    Step              a training step (train/loop.py)
    workspace_bytes   memory of a training step beside the tape's arrays, on a CPU (train/memory.py)
    step_bytes        memory of a training step, on a GPU (examples/train_cifar.py)
    pools_bytes       memory taken beside CuPy's own pool (train/report.py)
    threads           number of threads that compute (cli/info.py)
    check             a comparison of the backend with the reference, on this machine (cli/commands.py)
    """
    return getattr(_backends[device][0], name, None) if in_use(device) != "reference" else None


def in_use(device: str = "cpu") -> str:
    """The name of the backend for float32 arrays on `device`."""
    return device if _choice == "auto" and device in _backends else "reference"


def use_precision(choice: str) -> None:
    """Compute in `"fp32"` (default), `"tf32"` or `"bf16"` on the GPU; cuda/precision.py defines them.

    Raises `ValueError` for another choice, and `RuntimeError` with the reason if no backend offers the precision.
    """
    if choice not in PRECISIONS:
        raise ValueError(f"precision: {choice!r} is unknown, expected one of {', '.join(PRECISIONS)}")
    settings = _precision_settings()
    if settings is not None:
        settings.use(choice)
    elif choice != "fp32":
        raise RuntimeError(f"precision {choice!r}: no backend here offers it; use 'fp32'")


def default_precision(preferred: str | None = None) -> str:
    """The default precision for training on this GPU: the first possible of `preferred`, "tf32" and "fp32"."""
    settings = _precision_settings()
    return "fp32" if settings is None else settings.default(preferred)


def precision_in_use() -> str:
    """The choice of `use_precision`; "fp32" without a backend that offers a choice."""
    settings = _precision_settings()
    return "fp32" if settings is None else settings.current


def _precision_settings() -> ModuleType | None:
    """The precision.py of the backend that has one."""
    found = (getattr(backend, "precision", None) for backend, _ in _backends.values())
    return next((settings for settings in found if settings is not None), None)


use(os.environ.get("MINIRES_KERNELS", "auto"))
