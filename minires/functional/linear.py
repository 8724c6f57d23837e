"""The fully connected layer.

Reading order: after activation.py. Next: loss.py.
"""

from __future__ import annotations

from minires.device import Array
from minires.tensor import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias, for x (..., C), weight (C, O) and bias (O,).

    Raises `ValueError` when the shapes do not fit.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"linear: input has shape {x.shape}, the weight {weight.shape}; expected (..., C) and (C, O)")
    features, outputs = weight.shape
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"linear: bias has shape {bias.shape}, expected ({outputs},)")
    y = x.data @ weight.data
    if bias is not None:
        y += bias.data

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dx = dy @ weight.data.T if x.requires_grad else None
        dy = dy.reshape(-1, outputs)  # (M, O)
        dweight = x.data.reshape(-1, features).T @ dy  # (C, M) @ (M, O)
        return (dx, dweight) if bias is None else (dx, dweight, dy.sum(axis=0))

    return Tensor.from_op(y, (x, weight) if bias is None else (x, weight, bias), backward)
