"""Pooling: pooling.cu launched.

Reading order: after pooling.cu. Next: linear.py.
"""

from __future__ import annotations

from minires.cuda.launch import BLOCKS, THREADS, activation_of, channel_grid, program, vector_width
from minires.device import Array, module_of
from minires.reference import Two, output_size


def _run(name: str, images: tuple[int, ...], windows: tuple[int, ...], over: tuple, options: tuple, **arrays: Array):
    """Launch kernel `name`, a thread for each position of `over` (the shape of the images or of the windows)."""
    (kh, kw), (sh, sw), (ph, pw) = options
    first = next(iter(arrays.values()))
    vector = vector_width(images[3], *arrays.values())
    grid, block = channel_grid(over[0] * over[1] * over[2], over[3], vector, 8 * BLOCKS)
    program("pooling", ACTIVATION=activation_of(first), VECTOR=vector)[name](
        grid, block, **arrays, n=images[0], h=images[1], w=images[2], c=images[3], ho=windows[1], wo=windows[2],
        kh=kh, kw=kw, sh=sh, sw=sw, ph=ph, pw=pw,
    )  # fmt: skip


def _forward(name: str, x: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    x = module_of(x).ascontiguousarray(x)
    y = module_of(x).empty((x.shape[0], *output_size(x.shape, kernel, stride, padding), x.shape[3]), dtype=x.dtype)
    _run(name, x.shape, y.shape, y.shape, (kernel, stride, padding), x=x, y=y)
    return y


def max_pool2d(x: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    """See reference.max_pool2d."""
    return _forward("max_pool2d", x, kernel, stride, padding)


def max_pool2d_backward(dy: Array, x: Array, y: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    """See reference.max_pool2d_backward."""
    dy, x, y = map(module_of(x).ascontiguousarray, (dy, x, y))
    dx = module_of(x).empty(x.shape, dtype=dy.dtype)
    _run("max_pool2d_backward", x.shape, y.shape, x.shape, (kernel, stride, padding), dy=dy, x=x, y=y, dx=dx)
    return dx


def avg_pool2d(x: Array, kernel: Two, stride: Two, padding: Two) -> Array:
    """See reference.avg_pool2d."""
    return _forward("avg_pool2d", x, kernel, stride, padding)


def avg_pool2d_backward(dy: Array, shape: tuple[int, int, int, int], kernel: Two, stride: Two, padding: Two) -> Array:
    """See reference.avg_pool2d_backward."""
    dy = module_of(dy).ascontiguousarray(dy)
    dx = module_of(dy).empty(shape, dtype=dy.dtype)
    _run("avg_pool2d_backward", shape, dy.shape, shape, (kernel, stride, padding), dy=dy, dx=dx)
    return dx


def global_avg_pool2d(x: Array) -> Array:
    """See reference.global_avg_pool2d; float32 whatever the activations are."""
    x = module_of(x).ascontiguousarray(x)
    n, h, w, c = x.shape
    y = module_of(x).empty((n, c), dtype="float32")
    vector = vector_width(c, x, y)
    kernel = program("pooling", ACTIVATION=activation_of(x), VECTOR=vector)["global_avg_pool2d"]
    kernel((-(-n * c // (THREADS * vector)),), (THREADS,), x=x, y=y, share=1 / (h * w), n=n, positions=h * w, c=c)
    return y


def global_avg_pool2d_backward(dy: Array, x: Array) -> Array:
    """See reference.global_avg_pool2d_backward; in the dtype of x."""
    dy = module_of(dy).ascontiguousarray(dy)
    n, h, w, c = x.shape
    dx = module_of(dy).empty(x.shape, dtype=x.dtype)
    vector = vector_width(c, dy, dx)
    grid, block = channel_grid(n * h * w, c, vector, 8 * BLOCKS)
    kernel = program("pooling", ACTIVATION=activation_of(dx), VECTOR=vector)["global_avg_pool2d_backward"]
    kernel(grid, block, dy=dy, dx=dx, share=1 / (h * w), n=n, positions=h * w, c=c)
    return dx
