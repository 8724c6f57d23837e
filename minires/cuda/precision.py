"""The precision of matrix products and activations: one setting for the CUDA kernels.

    fp32   float32 throughout (default)
    tf32   matrix products round float32 factors to 10 bits of mantissa, for the tensor cores; sums and all else float32
    bf16   activations and their gradients are stored as bfloat16, 7 bits of mantissa, and so half the size; sums,
           batch-norm statistics, weights, their gradients and the optimiser stay float32

tf32 and bf16 need tensor cores that know these types: a GPU of compute capability 8.0 or newer.

Reading order: before convolution.py.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from minires.device import cuda

CHOICES = ("fp32", "tf32", "bf16")  # as PRECISION in tensor_core.cuh counts them
TENSOR_CORES = (8, 0)  # the compute capability that tf32 and bf16 need

current = "fp32"


def use(choice: str) -> None:
    """Compute so from now on. Raises `ValueError` for an unknown name, and `RuntimeError` with `why_not(choice)`."""
    global current
    if choice not in CHOICES:
        raise ValueError(f"precision: {choice!r} is unknown, expected one of {', '.join(CHOICES)}")
    if reason := why_not(choice):
        raise RuntimeError(reason)
    if choice == "bf16":
        import ml_dtypes  # noqa: F401  makes "bfloat16" a dtype of NumPy, and so of CuPy
    current = choice


def why_not(choice: str) -> str | None:
    """Why this machine cannot compute in `choice`, as one line, or None when it can. Without a GPU nothing speaks
    against tf32."""
    if choice not in CHOICES:
        return f"precision: {choice!r} is unknown, expected one of {', '.join(CHOICES)}"
    capability = cuda.capability()
    if choice != "fp32" and capability and capability < TENSOR_CORES:
        return (
            f"precision {choice!r} needs a GPU of compute capability 8.0 or newer (A100, RTX 30), this one has "
            f"{capability[0]}.{capability[1]}; use 'fp32'"
        )
    if choice == "bf16" and importlib.util.find_spec("ml_dtypes") is None:
        return "precision 'bf16' needs ml_dtypes; install it with: pip install ml_dtypes"
    if choice == "bf16" and capability:
        import cupy
        import ml_dtypes  # noqa: F401

        try:
            cupy.empty(0, dtype="bfloat16")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if tuple(map(int, np.__version__.split(".")[:3])) < (2, 1, 2):  # from which on CuPy knows bfloat16
                return (
                    f"precision 'bf16' needs NumPy 2.1.2 or newer, this is {np.__version__} ({reason}); install it "
                    "with: pip install 'numpy>=2.1.2'"
                )
            return f"precision 'bf16' does not work with this CuPy, {cupy.__version__} ({reason}); CuPy 14 can do it"
    return None


def default(preferred: str | None = None) -> str:
    """What training on this GPU uses unless told otherwise: the first it can of `preferred`, "tf32" and "fp32"."""
    return next(choice for choice in (preferred, "tf32", "fp32") if choice and not why_not(choice))


def activation() -> str:
    """The dtype in which activations are stored."""
    return "bfloat16" if current == "bf16" else "float32"
