"""Operations that only move numbers: reshape, transpose, indexing, padding, concatenation.

Their gradients move the numbers back.

Reading order: after arithmetic.py. Next: reduction.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType, NoneType
from typing import Any

import numpy as np

from minires.device import Array, module_of
from minires.functional.arithmetic import check_tensor
from minires.tensor import Tensor

BASIC = (int, np.integer, slice, NoneType, EllipsisType)  # indices that select nothing twice; nor does a mask


def count_axes(x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """`axes` counted from the front: -1 becomes the last. Raises `ValueError` for an axis that x lacks."""
    for axis in axes:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"axis {axis} is out of range for shape {x.shape}")
    return tuple(axis % x.ndim for axis in axes)


def reshape(x: Tensor, *shape: int | tuple[int, ...] | list[int]) -> Tensor:
    """The same numbers in a new shape; one axis may be -1. `reshape(x, 2, 3)` or `reshape(x, (2, 3))`."""
    check_tensor("reshape", x)
    new_shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape

    def backward(dy: Array) -> tuple[Array]:
        return (dy.reshape(x.shape),)

    return Tensor.from_op(x.data.reshape(new_shape), (x,), backward)


def flatten(x: Tensor, start_axis: int = 0) -> Tensor:
    """All axes from `start_axis` on as one: 0 for all of x, as in NumPy, 1 for (N, ...) -> (N, features)."""
    check_tensor("flatten", x)
    if not -x.ndim <= start_axis <= x.ndim:
        raise ValueError(f"flatten: start_axis {start_axis} is out of range for shape {x.shape}")
    kept = x.shape[:start_axis]
    return reshape(x, (*kept, math.prod(x.shape[len(kept) :])))  # not -1, which is ambiguous for an empty batch


def transpose(x: Tensor, *axes: int | tuple[int, ...] | list[int]) -> Tensor:
    """The axes permuted, `transpose(x, 2, 0, 1)`, or reversed, `transpose(x)`."""
    check_tensor("transpose", x)
    order: Any = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    order = count_axes(x, order) or tuple(reversed(range(x.ndim)))
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {axes} are not an order of the axes of shape {x.shape}")
    inverse = tuple(order.index(axis) for axis in range(x.ndim))

    def backward(dy: Array) -> tuple[Array]:
        return (dy.transpose(inverse),)

    return Tensor.from_op(x.data.transpose(order), (x,), backward)


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index], for every index of NumPy: integers, slices, None, masks, integer arrays.

    An element selected twice receives the sum of both gradients.
    """
    index = index if isinstance(index, tuple) else (index,)
    index = tuple(part.data if isinstance(part, Tensor) else part for part in index)

    def backward(dy: Array) -> tuple[Array]:
        xp = module_of(dy)
        dx = xp.zeros(x.shape, dtype=dy.dtype)
        is_mask = len(index) == 1 and getattr(index[0], "dtype", None) == np.bool_
        if is_mask or all(isinstance(part, BASIC) for part in index):
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)  # dx[index] += dy would keep only one of several equal indices
        return (dx,)

    return Tensor.from_op(x.data[index], (x,), backward)


def pad(x: Tensor, widths: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros around x: `widths[i]` = (before, after) for axis i."""
    if len(widths) != x.ndim or any(width < 0 for pair in widths for width in pair):
        raise ValueError(f"pad: widths {widths} do not fit shape {x.shape}: one pair of numbers >= 0 per axis")
    inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape))

    def backward(dy: Array) -> tuple[Array]:
        return (dy[inside],)

    return Tensor.from_op(module_of(x.data).pad(x.data, widths), (x,), backward)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors joined along an existing axis. Raises `ValueError` for an axis that they lack."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("concatenate: expected at least one tensor, got none")
    xp = module_of(tensors[0].data)
    (axis,) = count_axes(tensors[0], [axis])
    ends = []
    for tensor in tensors:
        ends.append((ends[-1] if ends else 0) + tensor.shape[axis])

    def backward(dy: Array) -> list[Array]:
        return xp.split(dy, ends[:-1], axis=axis)

    return Tensor.from_op(xp.concatenate([tensor.data for tensor in tensors], axis=axis), tensors, backward)
