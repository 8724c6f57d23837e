"""Pooling: the maximum or the mean of each window.

Reading order: after normalization.py. Next: nn/module.py.
"""

from __future__ import annotations

from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.reference import Pair, output_size, pair
from minires.tensor import Tensor


def max_pool2d(x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """The maximum of each kernel_size window of x (N,H,W,C); windows are `stride` apart (default: kernel_size).

    Padding counts as minus infinity. The first of equal maxima, row by row, receives the gradient.
    Raises `ValueError` if the window does not fit or padding exceeds half the window; `TypeError` for integers.
    """
    kernel_size, stride, padding = _window("max_pool2d", x, kernel_size, stride, padding)
    backend = kernels.of(x.data)
    y = backend.max_pool2d(x.data, kernel_size, stride, padding)

    def backward(dy: Array) -> tuple[Array]:
        return (backend.max_pool2d_backward(dy, x.data, y, kernel_size, stride, padding),)

    return Tensor.from_op(y, (x,), backward)


def avg_pool2d(x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """The mean of each kernel_size window of x (N,H,W,C); padding counts as zeros, as in PyTorch.

    Raises `ValueError` if the window does not fit or padding exceeds half the window; `TypeError` for integers.
    """
    kernel_size, stride, padding = _window("avg_pool2d", x, kernel_size, stride, padding)
    backend = kernels.of(x.data)
    shape = x.shape

    def backward(dy: Array) -> tuple[Array]:
        return (backend.avg_pool2d_backward(dy, shape, kernel_size, stride, padding),)

    return Tensor.from_op(backend.avg_pool2d(x.data, kernel_size, stride, padding), (x,), backward)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, C): the mean over all positions. Raises `TypeError` for integers."""
    check_floating("global_avg_pool2d", x)
    if x.ndim != 4:
        raise ValueError(f"global_avg_pool2d: input has shape {x.shape}, expected (N,H,W,C)")
    backend = kernels.of(x.data)

    def backward(dy: Array) -> tuple[Array]:
        return (backend.global_avg_pool2d_backward(dy, x.data),)

    return Tensor.from_op(backend.global_avg_pool2d(x.data), (x,), backward)


def _window(name: str, x: Tensor, kernel_size: Pair, stride: Pair | None, padding: Pair) -> tuple:
    check_floating(name, x)
    kernel_size = pair("kernel_size", kernel_size, 1)
    stride = kernel_size if stride is None else pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    if x.ndim != 4:
        raise ValueError(f"{name}: input has shape {x.shape}, expected (N,H,W,C)")
    if any(2 * p > k for p, k in zip(padding, kernel_size)):
        raise ValueError(f"{name}: padding {padding} is more than half of kernel_size {kernel_size}")
    if 0 in output_size(x.shape, kernel_size, stride, padding):
        raise ValueError(
            f"{name}: a window of {kernel_size} does not fit into the input {x.shape[1]}x{x.shape[2]} "
            f"padded by {padding}"
        )
    return kernel_size, stride, padding
