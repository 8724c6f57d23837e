"""The linear layer: matrix products by cuBLAS.

Reading order: after pooling.py. Next: loss.cu.
"""

from __future__ import annotations

from minires.cuda import blas
from minires.cuda.elementwise import convert, scale_and_shift
from minires.cuda.sums import column_sum
from minires.device import Array, module_of


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """See reference.linear; in float32, or tf32: bf16 ends before the classifier."""
    x, weight = convert(x, "float32"), convert(weight, "float32")
    features, outputs = weight.shape
    rows = x.size // features
    y = module_of(x).empty((*x.shape[:-1], outputs), dtype="float32")
    blas.product(blas.Matrix(x, rows, features), blas.Matrix(weight, features, outputs), blas.Matrix(y, rows, outputs))
    if bias is not None:
        scale_and_shift(y, None, bias, None, relu=False)
    return y


def linear_backward(
    dy: Array, x: Array, weight: Array, need_dx: bool, need_dweight: bool
) -> tuple[Array | None, Array | None, Array]:
    """See reference.linear_backward."""
    xp = module_of(dy)
    dtype = x.dtype.name
    dy, x, weight = (convert(array, "float32") for array in (dy, x, weight))
    features, outputs = weight.shape
    rows = x.size // features
    dx = dweight = None
    gradient = blas.Matrix(dy, rows, outputs)
    if need_dx:
        dx = xp.empty(x.shape, dtype="float32")
        blas.product(gradient, blas.Matrix(weight, features, outputs).T, blas.Matrix(dx, rows, features))
        dx = convert(dx, dtype)
    if need_dweight:
        dweight = xp.empty(weight.shape, dtype="float32")
        blas.product(blas.Matrix(x, rows, features).T, gradient, blas.Matrix(dweight, features, outputs))
    return dx, dweight, column_sum(dy)
