"""Optimiser updates over the flat buffers, split over the workers and worked through in cached chunks.

As array expressions a step of Adam passes about fifteen times over arrays of 170 MB (ResNet-101). In chunks
of half a megabyte all operations but the first find their operands in the cache.

Reading order: after pooling.py.
"""

from __future__ import annotations

import numpy as np

from minires import reference
from minires.cpu.elementwise import CHUNK_BYTES
from minires.cpu.plan import even_parts
from minires.cpu.workers import parallel, scratch


def sgd_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    velocity: np.ndarray,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """See reference.sgd_update: the same lines, a chunk at a time."""

    def part(begin: int, end: int) -> None:
        for a, b in even_parts(begin, end, CHUNK_BYTES // 4):
            reference.sgd_update(
                parameter[a:b], gradient[a:b], velocity[a:b], lr, momentum, weight_decay, nesterov
            )  # fmt: skip

    parallel(part, parameter.size)


def adam_update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """See reference.adam_update: the same operations, a chunk at a time, in scratch memory."""
    step_size = lr / (1 - beta1**step)
    root_correction = 1 / (1 - beta2**step) ** 0.5

    def part(begin: int, end: int) -> None:
        for a, b in even_parts(begin, end, CHUNK_BYTES // 4):
            p, g, m, v = parameter[a:b], gradient[a:b], mean[a:b], square[a:b]
            t = scratch("adam", p.shape)
            if decoupled:
                np.multiply(p, 1 - lr * weight_decay, out=p)
            elif weight_decay:
                decayed = scratch("adam gradient", p.shape)
                np.multiply(p, weight_decay, out=decayed)
                g = np.add(decayed, g, out=decayed)
            np.subtract(g, m, out=t)  # mean += (1 - beta1) * (g - mean)
            np.multiply(t, 1 - beta1, out=t)
            np.add(m, t, out=m)
            np.multiply(v, beta2, out=v)  # square = beta2 * square + (1 - beta2) * g * g
            np.multiply(g, g, out=t)
            np.multiply(t, 1 - beta2, out=t)
            np.add(v, t, out=v)
            np.sqrt(v, out=t)  # parameter -= step_size * mean / (sqrt(square) * root_correction + eps)
            np.multiply(t, root_correction, out=t)
            np.add(t, eps, out=t)
            np.divide(m, t, out=t)
            np.multiply(t, step_size, out=t)
            np.subtract(p, t, out=p)

    parallel(part, parameter.size)
