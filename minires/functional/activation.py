"""Nonlinearities and dropout.

Reading order: after kernels.py. Next: linear.py.
"""

from __future__ import annotations

import numpy as np

from minires import device, kernels
from minires.device import Array, module_of
from minires.functional.arithmetic import check_floating, check_tensor
from minires.tensor import Tensor


def relu(x: Tensor) -> Tensor:
    """max(x, 0). The gradient at exactly 0 is 0, as in PyTorch."""
    check_tensor("relu", x)
    backend = kernels.of(x.data)
    y = backend.relu(x.data)

    def backward(dy: Array) -> tuple[Array]:
        return (backend.relu_backward(dy, y),)

    return Tensor.from_op(y, (x,), backward)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`. Subtracting the maximum first keeps logits of 1e4 from overflowing.

    Raises `TypeError` for integers.
    """
    check_floating("softmax", x)
    xp = module_of(x.data)
    e = xp.exp(x.data - x.data.max(axis=axis, keepdims=True))
    y = e / e.sum(axis=axis, keepdims=True)

    def backward(dy: Array) -> tuple[Array]:
        return (y * (dy - (dy * y).sum(axis=axis, keepdims=True)),)

    return Tensor.from_op(y, (x,), backward)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)), without the logarithm of a probability rounded to 0. Raises `TypeError` for integers."""
    check_floating("log_softmax", x)
    xp = module_of(x.data)
    shifted = x.data - x.data.max(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))

    def backward(dy: Array) -> tuple[Array]:
        return (dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True),)

    return Tensor.from_op(y, (x,), backward)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, generator: np.random.Generator | None = None) -> Tensor:
    """Zero each element with probability p and scale the rest by 1/(1-p); x itself when not training.

    Source: Srivastava et al. 2014, in the "inverted" form that leaves evaluation alone.
    Raises `ValueError` unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is {p}, expected a probability between 0 and 1")
    if not training or p == 0:
        return x
    generator = generator or device.default_generator()
    keep = generator.random(x.shape) >= p
    scale = 1 / (1 - p) if p < 1 else 0.0
    mask = module_of(x.data).asarray(keep * scale, dtype=x.dtype)  # 0 or 1/(1-p)

    def backward(dy: Array) -> tuple[Array]:
        return (dy * mask,)

    return Tensor.from_op(x.data * mask, (x,), backward)
