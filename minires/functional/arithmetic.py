"""Elementwise arithmetic with broadcasting, and the matrix product.

Each operation is one function: the forward line, then a nested `backward` that maps the gradient of
the output, `dy`, to the gradients of the inputs. Broadcasting in forward becomes a sum in backward
(`unbroadcast`): a value used many times receives the gradient of every use.

Reading order: after tensor.py, as the smallest operations. Next: shape.py.
"""

from __future__ import annotations

from numbers import Number

from minires.device import Array, module_of
from minires.tensor import Tensor


def as_tensor(value: Tensor | Array | float, like: Tensor) -> Tensor:
    """`value` as a Tensor. A number takes the dtype and device of `like`: 2 * x stays float32, 2 * bytes bytes. The
    exceptions are a fraction times integers, and any number times booleans. Raises `TypeError` for None and texts."""
    if isinstance(value, Tensor):
        return value
    if not (hasattr(value, "dtype") or isinstance(value, (Number, list, tuple))):
        raise TypeError(f"expected a Tensor, an array or a number beside a Tensor, got {value!r:.50}")
    if isinstance(value, (list, tuple)):
        Tensor(value)  # refuses tensors in a list
    if getattr(value, "ndim", 0) == 0:
        fits = like.dtype.kind not in "iub" or (isinstance(value, int) and like.dtype.kind != "b")
        return Tensor(module_of(like.data).asarray(value, dtype=like.dtype if fits else None))
    return Tensor(value)


def check_tensor(operation: str, x: Tensor) -> None:
    """Raises `TypeError` for anything but a Tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{operation}: input is of type {type(x).__name__}, expected a Tensor: wrap it, Tensor(x)")


def check_floating(operation: str, x: Tensor) -> None:
    """Raises `TypeError` for anything but a floating-point Tensor: sums of products overflow in bytes."""
    check_tensor(operation, x)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise TypeError(
            f"{operation}: input has dtype {x.dtype}, expected floating-point (images: .astype(np.float32) / 255)"
        )


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum `gradient` over the axes along which an array of `shape` was broadcast; (3,4) -> (3,1) sums axis 1."""
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)  # axes that broadcasting put in front
    axes = [*range(added), *(added + i for i, n in enumerate(shape) if n == 1)]
    return gradient.sum(axis=tuple(axes), keepdims=True).reshape(shape)


def add(a: Tensor, b: Tensor | Array | float) -> Tensor:
    """a + b."""
    b = as_tensor(b, a)
    a_shape, b_shape = a.shape, b.shape  # all that backward needs

    def backward(dy: Array) -> tuple[Array, Array]:
        return unbroadcast(dy, a_shape), unbroadcast(dy, b_shape)

    return Tensor.from_op(a.data + b.data, (a, b), backward)


def subtract(a: Tensor, b: Tensor | Array | float) -> Tensor:
    """a - b."""
    b = as_tensor(b, a)
    a_shape, b_shape = a.shape, b.shape

    def backward(dy: Array) -> tuple[Array, Array]:
        return unbroadcast(dy, a_shape), unbroadcast(-dy, b_shape)

    return Tensor.from_op(a.data - b.data, (a, b), backward)


def multiply(a: Tensor, b: Tensor | Array | float) -> Tensor:
    """a * b: each factor receives the gradient times the other."""
    b = as_tensor(b, a)

    def backward(dy: Array) -> tuple[Array, Array]:
        return unbroadcast(dy * b.data, a.shape), unbroadcast(dy * a.data, b.shape)

    return Tensor.from_op(a.data * b.data, (a, b), backward)


def divide(a: Tensor, b: Tensor | Array | float) -> Tensor:
    """a / b."""
    b = as_tensor(b, a)
    y = a.data / b.data

    def backward(dy: Array) -> tuple[Array, Array]:
        da = dy / b.data
        return unbroadcast(da, a.shape), unbroadcast(-da * y, b.shape)

    return Tensor.from_op(y, (a, b), backward)


def negative(a: Tensor) -> Tensor:
    """-a."""
    check_tensor("negative", a)

    def backward(dy: Array) -> tuple[Array]:
        return (-dy,)

    return Tensor.from_op(-a.data, (a,), backward)


def power(a: Tensor, exponent: Array | float) -> Tensor:
    """a ** exponent, for a constant exponent. The gradient is exponent * a ** (exponent - 1)."""
    check_tensor("power", a)
    if getattr(exponent, "ndim", 0) != 0 or isinstance(exponent, Tensor):
        raise TypeError("power: the exponent must be a number; write exp(log(a) * b) for a tensor exponent")
    as_number = getattr(exponent, "item", None)  # of NumPy's numbers: np.float64(2) would make float64 of float32
    exponent = as_number() if as_number else exponent

    def backward(dy: Array) -> tuple[Array]:
        if exponent == 0:  # 0 * a**-1 would be 0 * inf at a = 0
            return (dy * 0,)
        return (dy * exponent * a.data ** (exponent - 1),)

    return Tensor.from_op(a.data**exponent, (a,), backward)


def exp(a: Tensor) -> Tensor:
    """e ** a."""
    y = module_of(a.data).exp(a.data)

    def backward(dy: Array) -> tuple[Array]:
        return (dy * y,)

    return Tensor.from_op(y, (a,), backward)


def log(a: Tensor) -> Tensor:
    """The natural logarithm."""

    def backward(dy: Array) -> tuple[Array]:
        return (dy / a.data,)

    return Tensor.from_op(module_of(a.data).log(a.data), (a,), backward)


def sqrt(a: Tensor) -> Tensor:
    """The square root."""
    y = module_of(a.data).sqrt(a.data)

    def backward(dy: Array) -> tuple[Array]:
        return (dy / (2 * y),)

    return Tensor.from_op(y, (a,), backward)


def matmul(a: Tensor, b: Tensor | Array) -> Tensor:
    """The matrix product a @ b of (..., n, k) and (..., k, m), with leading axes broadcast; 1-D as in NumPy.

    With y = a @ b the gradients are da = dy @ bᵀ and db = aᵀ @ dy.
    """
    b = as_tensor(b, a)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: a has shape {a.shape} and b {b.shape}, expected at least one axis each")

    def backward(dy: Array) -> tuple[Array, Array]:
        # A vector on the left is a row (1, k), a vector on the right is a column (k, 1). matmul drops this
        # axis from its result; backward puts the axis back into dy before the two products.
        a2 = a.data[None, :] if a.ndim == 1 else a.data  # (..., n, k)
        b2 = b.data[:, None] if b.ndim == 1 else b.data  # (..., k, m)
        if b.ndim == 1:
            dy = dy[..., None]
        if a.ndim == 1:
            dy = dy[..., None, :]  # (..., n, m)
        da = unbroadcast(dy @ b2.swapaxes(-1, -2), a2.shape)
        db = unbroadcast(a2.swapaxes(-1, -2) @ dy, b2.shape)
        return da.reshape(a.shape), db.reshape(b.shape)

    return Tensor.from_op(a.data @ b.data, (a, b), backward)
