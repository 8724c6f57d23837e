"""Sum, mean and maximum over axes.

Reading order: after shape.py. Next: reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minires.device import Array, module_of
from minires.functional.arithmetic import check_tensor, multiply
from minires.functional.shape import count_axes
from minires.tensor import Tensor

Axis = int | Sequence[int] | None


def reduced_axes(x: Tensor, axis: Axis) -> tuple[int, ...]:
    """`axis` as the axes that it stands for, counted from the front."""
    return count_axes(x, range(x.ndim) if axis is None else (axis,) if isinstance(axis, (int, np.integer)) else axis)


def _withreduced_axes(y: Array, x: Tensor, axes: tuple[int, ...]) -> Array:
    """`y` with every reduced axis restored at length 1, to broadcast against x."""
    return y.reshape([1 if i in axes else n for i, n in enumerate(x.shape)])


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes when None). Every summand receives the whole gradient."""
    check_tensor("sum", x)
    axes = reduced_axes(x, axis)

    def backward(dy: Array) -> tuple[Array]:
        return (module_of(dy).broadcast_to(_withreduced_axes(dy, x, axes), x.shape),)

    return Tensor.from_op(x.data.sum(axis=axes, keepdims=keepdims), (x,), backward)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (all axes when None). Raises `ValueError` for a mean of nothing."""
    check_tensor("mean", x)
    count = 1
    for a in reduced_axes(x, axis):
        count *= x.shape[a]
    if count == 0:
        raise ValueError(f"mean: there is nothing to average over axis {axis} of shape {x.shape}")
    return multiply(sum(x, axis, keepdims), 1.0 / count)


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The maximum over `axis` (all axes when None). Equal maxima share the gradient evenly, as in PyTorch's amax."""
    check_tensor("max", x)
    axes = reduced_axes(x, axis)
    y = x.data.max(axis=axes, keepdims=keepdims)

    def backward(dy: Array) -> tuple[Array]:
        is_max = x.data == _withreduced_axes(y, x, axes)
        share = _withreduced_axes(dy, x, axes) / is_max.sum(axis=axes, keepdims=True).astype(dy.dtype)
        return (is_max * share,)

    return Tensor.from_op(y, (x,), backward)
