"""The fully connected layer.

Reading order: after activation.py. Next: loss.py.
"""

from __future__ import annotations

from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.tensor import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias, for x (..., C), weight (C, O) and bias (O,).

    Raises `ValueError` when the shapes do not fit, `TypeError` for integers.
    """
    check_floating("linear", x)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"linear: input has shape {x.shape}, the weight {weight.shape}; expected (..., C) and (C, O)")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"linear: bias has shape {bias.shape}, expected ({weight.shape[1]},)")
    backend = kernels.of(x.data, weight.data)
    y = backend.linear(x.data, weight.data, None if bias is None else bias.data)

    def backward(dy: Array) -> tuple[Array | None, ...]:
        gradients = backend.linear_backward(dy, x.data, weight.data, x.requires_grad, weight.requires_grad)
        return gradients[:2] if bias is None else gradients

    return Tensor.from_op(y, (x, weight) if bias is None else (x, weight, bias), backward)
