"""Pooling: the definition, image by image.

A pooling window needs no new idea, only the cache: each worker runs the reference on one image at a time, whose
padded copy and masks then stay in its cache.

Reading order: after branch.py. Next: optimizers.py.
"""

from __future__ import annotations

import numpy as np

from minires import reference
from minires.cpu.workers import parallel
from minires.reference import Two, output_size


def max_pool2d(x: np.ndarray, kernel: Two, stride: Two, padding: Two) -> np.ndarray:
    """See reference.max_pool2d."""
    y = np.empty((x.shape[0], *output_size(x.shape, kernel, stride, padding), x.shape[3]), np.float32)
    _each_image(lambda i: reference.max_pool2d(x[i], kernel, stride, padding), y)
    return y


def max_pool2d_backward(
    dy: np.ndarray, x: np.ndarray, y: np.ndarray, kernel: Two, stride: Two, padding: Two
) -> np.ndarray:
    """See reference.max_pool2d_backward."""
    dx = np.empty(x.shape, np.float32)
    _each_image(lambda i: reference.max_pool2d_backward(dy[i], x[i], y[i], kernel, stride, padding), dx)
    return dx


def avg_pool2d(x: np.ndarray, kernel: Two, stride: Two, padding: Two) -> np.ndarray:
    """See reference.avg_pool2d."""
    y = np.empty((x.shape[0], *output_size(x.shape, kernel, stride, padding), x.shape[3]), np.float32)
    _each_image(lambda i: reference.avg_pool2d(x[i], kernel, stride, padding), y)
    return y


def avg_pool2d_backward(dy: np.ndarray, shape: tuple, kernel: Two, stride: Two, padding: Two) -> np.ndarray:
    """See reference.avg_pool2d_backward."""
    dx = np.empty(shape, np.float32)
    _each_image(lambda i: reference.avg_pool2d_backward(dy[i], (1, *shape[1:]), kernel, stride, padding), dx)
    return dx


def _each_image(compute, out: np.ndarray) -> None:
    """out[i:i+1] = compute(slice(i, i+1)) for every image i, split over the workers."""

    def part(begin: int, end: int) -> None:
        for i in range(begin, end):
            out[i : i + 1] = compute(slice(i, i + 1))

    parallel(part, out.shape[0])
