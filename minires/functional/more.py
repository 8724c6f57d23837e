"""Operations that no ResNet here needs, for networks of your own: tanh, sigmoid, where, stack, ...

Reading order: any time after shape.py and reduction.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minires.device import Array, module_of, to_device
from minires.functional.activation import log_softmax
from minires.functional.arithmetic import as_tensor, check_floating, check_tensor, multiply, subtract, unbroadcast
from minires.functional.reduction import Axis, mean, reduced_axes, sum
from minires.functional.shape import concatenate, count_axes, reshape
from minires.reference import Pair, pair
from minires.tensor import Tensor

# Elementwise ------------------------------------------------------------------------------------------------


def abs(x: Tensor) -> Tensor:
    """|x|. The gradient at exactly 0 is 0, as in PyTorch."""
    check_tensor("abs", x)
    xp = module_of(x.data)

    def backward(dy: Array) -> tuple[Array]:
        return (dy * xp.sign(x.data),)

    return Tensor.from_op(xp.abs(x.data), (x,), backward)


def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """x limited to low ... high; None is no limit. The gradient is 1 from low to high and 0 outside, as in PyTorch.

    Raises `ValueError` for low > high.
    """
    check_tensor("clip", x)
    if low is not None and high is not None and low > high:
        raise ValueError(f"clip: low is {low} and high {high}, expected low <= high")
    xp = module_of(x.data)
    low, high = (limit.item() if isinstance(limit, np.generic) else limit for limit in (low, high))  # float32 stays so

    def backward(dy: Array) -> tuple[Array]:
        inside = xp.ones(x.shape, dtype=bool)
        if low is not None:
            inside &= x.data >= low
        if high is not None:
            inside &= x.data <= high
        return (dy * inside,)

    y = x.data
    y = y if low is None else xp.maximum(y, low)
    y = y if high is None else xp.minimum(y, high)
    return Tensor.from_op(y, (x,), backward)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent. Its derivative is 1 - tanh(x)². Raises `TypeError` for integers."""
    check_floating("tanh", x)
    y = module_of(x.data).tanh(x.data)

    def backward(dy: Array) -> tuple[Array]:
        return (dy * (1 - y * y),)

    return Tensor.from_op(y, (x,), backward)


def sigmoid(x: Tensor) -> Tensor:
    """s = 1 / (1 + exp(-x)). Its derivative is s (1 - s). Raises `TypeError` for integers."""
    check_floating("sigmoid", x)
    xp = module_of(x.data)
    e = xp.exp(-xp.abs(x.data))  # at most 1: exp(-x) overflows for x < -88 in float32
    y = xp.where(x.data >= 0, 1 / (1 + e), e / (1 + e))

    def backward(dy: Array) -> tuple[Array]:
        return (dy * y * (1 - y),)

    return Tensor.from_op(y, (x,), backward)


def where(condition: Tensor | Array, a: Tensor | Array | float, b: Tensor | Array | float) -> Tensor:
    """a where `condition` is true, else b, with broadcasting; a or b is a Tensor. The other one gets no gradient there.

    Raises `TypeError` for a condition that is not of booleans, such as x > 0.
    """
    like = a if isinstance(a, Tensor) else b
    if not isinstance(like, Tensor):
        raise TypeError(f"where: got {type(a).__name__} and {type(b).__name__}, expected a Tensor as one of them")
    a, b = as_tensor(a, like), as_tensor(b, like)
    xp = module_of(like.data)
    condition = xp.asarray(condition.data if isinstance(condition, Tensor) else condition)
    if condition.dtype.kind != "b":
        raise TypeError(f"where: condition has dtype {condition.dtype}, expected bool, such as x > 0")

    def backward(dy: Array) -> tuple[Array, Array]:
        zero = xp.zeros((), dtype=dy.dtype)
        return unbroadcast(xp.where(condition, dy, zero), a.shape), unbroadcast(xp.where(condition, zero, dy), b.shape)

    return Tensor.from_op(xp.where(condition, a.data, b.data), (a, b), backward)


# Shapes and reductions --------------------------------------------------------------------------------------


def squeeze(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """x without its axes of length 1, or without `axis`. Raises `ValueError` for an axis of another length."""
    check_tensor("squeeze", x)
    if axis is None:
        axes = [i for i, n in enumerate(x.shape) if n == 1]
    else:
        axes = count_axes(x, axis if isinstance(axis, tuple) else (axis,))
    if any(x.shape[i] != 1 for i in axes):
        raise ValueError(f"squeeze: axis {axis} of shape {x.shape} has not length 1")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors, all of one shape, joined along a new axis. Raises `ValueError` for different shapes."""
    tensors = list(tensors)
    if not tensors:
        raise ValueError("stack: expected at least one tensor, got none")
    for tensor in tensors:
        check_tensor("stack", tensor)
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(f"stack: tensors have shapes {', '.join(map(str, sorted(shapes)))}, expected one shape")
    (shape,) = shapes
    if not -len(shape) - 1 <= axis <= len(shape):
        raise ValueError(f"stack: axis {axis} is out of range for {len(shape) + 1} axes")
    axis %= len(shape) + 1
    return concatenate([reshape(tensor, (*shape[:axis], 1, *shape[axis:])) for tensor in tensors], axis)


def var(x: Tensor, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The mean over `axis` of (x - mean)²; with ddof=1 divided by one less than the count, as PyTorch does.

    Raises `ValueError` where nothing is left to divide by.
    """
    deviation = subtract(x, mean(x, axis, keepdims=True))
    squares = sum(multiply(deviation, deviation), axis, keepdims)
    count = math.prod(x.shape[i] for i in reduced_axes(x, axis))
    if count <= ddof:
        raise ValueError(f"var: {count} values over axis {axis} of shape {x.shape}, ddof {ddof}; expected more values")
    return multiply(squares, 1.0 / (count - ddof))


def argmax(x: Tensor, axis: int | None = None) -> Tensor:
    """The index of the first maximum along `axis`, or in the flattened x: a Tensor of int64 without a gradient."""
    check_tensor("argmax", x)
    return Tensor(x.data.argmax(axis=axis))


# Losses and images ------------------------------------------------------------------------------------------


def mse_loss(prediction: Tensor, target: Tensor | Array) -> Tensor:
    """The mean of (prediction - target)², a scalar.

    Raises `ValueError` for different shapes: (N, 1) beside (N,) would broadcast to (N, N). `TypeError` for integers.
    """
    check_floating("mse_loss", prediction)
    target = as_tensor(target, prediction)
    if prediction.shape != target.shape:
        raise ValueError(f"mse_loss: prediction has shape {prediction.shape}, target {target.shape}, expected the same")
    deviation = subtract(prediction, target)
    return mean(multiply(deviation, deviation))


def weighted_cross_entropy(logits: Tensor, labels: Array, label_smoothing: float, weight: Array) -> Tensor:
    """`cross_entropy` with a `weight` (K,), for logits (N, K) and labels (N,) that it has checked."""
    xp, (n, classes) = module_of(logits.data), logits.shape
    weight = weight.data if isinstance(weight, Tensor) else weight
    weight = weight if hasattr(weight, "dtype") else np.asarray(weight)
    if weight.shape != (classes,):
        raise ValueError(f"cross_entropy: weight has shape {weight.shape}, expected ({classes},), one per class")
    weight = to_device(weight, logits.device).astype(logits.dtype)
    total = weight[labels].sum()
    if not (weight.min() >= 0 and 0 < total < np.inf):
        raise ValueError("cross_entropy: weight has negative or infinite numbers, or none but 0 for these labels")
    log_p = log_softmax(logits)
    loss = (log_p[xp.arange(n), labels] * (weight[labels] / total)).sum() * (label_smoothing - 1)
    if label_smoothing:
        loss = loss - (log_p * (weight / total)).sum() * (label_smoothing / classes)
    return loss


def interpolate(x: Tensor, scale_factor: Pair, mode: str = "nearest") -> Tensor:
    """(N,H,W,C) -> (N,H*s,W*s,C) for whole numbers s: every pixel is repeated. The gradient adds the repetitions up.

    scale_factor  one number, or (vertical, horizontal)

    Raises `ValueError` for another mode than "nearest", `TypeError` for integers.
    """
    check_floating("interpolate", x)
    if x.ndim != 4:
        raise ValueError(f"interpolate: input has shape {x.shape}, expected (N,H,W,C)")
    if mode != "nearest":
        raise ValueError(f"interpolate: mode is {mode!r}, expected 'nearest'")
    sh, sw = pair("scale_factor", scale_factor, 1)
    n, h, w, c = x.shape

    def backward(dy: Array) -> tuple[Array]:
        return (dy.reshape(n, h, sh, w, sw, c).sum(axis=(2, 4)),)  # (N,H*sh,W*sw,C) -> (N,H,W,C)

    repeated = module_of(x.data).broadcast_to(x.data[:, :, None, :, None], (n, h, sh, w, sw, c))
    # (N,H,sh,W,sw,C): each pixel sh * sw times
    return Tensor.from_op(repeated.reshape(n, h * sh, w * sw, c), (x,), backward)
