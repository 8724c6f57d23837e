"""The precision of matrix products and activations: one setting for the CUDA kernels.

    fp32   float32 throughout (default)
    tf32   matrix products round float32 factors to 10 bits of mantissa, for the tensor cores; sums and all else float32
    bf16   activations and their gradients are stored as bfloat16, 8 bits of mantissa, and so half the size; sums,
           batch-norm statistics, weights, their gradients and the optimiser stay float32

Reading order: before convolution.py.
"""

from __future__ import annotations

CHOICES = ("fp32", "tf32", "bf16")  # as PRECISION in tensor_core.cuh counts them

current = "fp32"


def use(choice: str) -> None:
    """Compute so from now on. Raises `ValueError` for an unknown name, `RuntimeError` when bf16 lacks ml_dtypes."""
    global current
    if choice not in CHOICES:
        raise ValueError(f"precision: {choice!r} is unknown, expected one of {', '.join(CHOICES)}")
    if choice == "bf16":
        try:
            import ml_dtypes  # noqa: F401  makes "bfloat16" a dtype of NumPy, and so of CuPy
        except ImportError as error:
            raise RuntimeError("precision 'bf16' needs ml_dtypes; install it with: pip install ml_dtypes") from error
    current = choice


def activation() -> str:
    """The dtype in which activations are stored."""
    return "bfloat16" if current == "bf16" else "float32"
