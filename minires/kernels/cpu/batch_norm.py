"""Batch normalisation, with the residual addition and the ReLU in the same pass over memory.

Written as array expressions, normalise + add + ReLU are three passes over arrays that do not fit into any cache,
and the reference makes about ten. Here there is one to measure (mean and variance) and one to apply; backward
has one to reduce and one to apply. Each chunk of half a megabyte goes through all operations while it is cached.

The mean and variance of a chunk are taken around the chunk's own mean, then merged in float64: adding up squares
in float32 would lose the variance of channels whose mean is large.
Source of the merge: Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for variances.

Reading order: after elementwise.py. Next: pooling.py.
"""

from __future__ import annotations

import numpy as np

from minires.kernels.cpu.elementwise import chunks, mask_gradient, relu_in_place, repeats, wide
from minires.kernels.cpu.matmul import ones
from minires.kernels.cpu.workers import parallel, scratch


def column_sum(x: np.ndarray) -> np.ndarray:
    """See reference.column_sum."""
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    rows = wide(x, repeats(x.size // channels, channels))

    def part(begin: int, end: int) -> np.ndarray:
        return sum(sum_rows(rows[chunk], channels) for chunk in chunks(begin, end, rows.shape[1]))

    return sum(parallel(part, rows.shape[0])).astype(np.float32)


def sum_rows(rows: np.ndarray, channels: int) -> np.ndarray:
    """(rows, R*C) -> (C,) in float64."""
    return (ones(rows.shape[0]) @ rows).reshape(-1, channels).sum(axis=0, dtype=np.float64)


def batch_norm_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See reference.batch_norm_statistics."""
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    r = repeats(x.size // channels, channels)
    rows = wide(x, r)

    def part(begin: int, end: int) -> tuple[int, np.ndarray, np.ndarray]:
        merged = None
        for chunk in chunks(begin, end, rows.shape[1]):
            block = rows[chunk]
            count = block.shape[0] * r
            mean = sum_rows(block, channels) / count
            centred = scratch("centred", block.shape)
            np.subtract(block, np.tile(mean.astype(np.float32), r), out=centred)
            np.multiply(centred, centred, out=centred)
            moments = (count, mean, sum_rows(centred, channels))
            merged = moments if merged is None else merge(merged, moments)
        return merged

    parts = parallel(part, rows.shape[0])
    total = parts[0]
    for other in parts[1:]:
        total = merge(total, other)
    count, mean, squares = total
    return mean.astype(np.float32), (squares / count).astype(np.float32)


def merge(a: tuple, b: tuple) -> tuple:
    """(count, mean, sum of squares around the mean) of two samples together."""
    (n, mean_a, squares_a), (m, mean_b, squares_b) = a, b
    difference = mean_b - mean_a
    mean = mean_a + difference * (m / (n + m))
    return n + m, mean, squares_a + squares_b + difference**2 * (n * m / (n + m))


def batch_norm_apply(
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    residual: np.ndarray | None,
    relu: bool,
) -> np.ndarray:
    """See reference.batch_norm_apply."""
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    r = repeats(x.size // channels, channels)
    scale, shift = scale_and_shift(mean, var, weight, bias, eps, r)
    y = np.empty_like(x)
    x_rows, y_rows = wide(x, r), wide(y, r)
    residual_rows = None if residual is None else wide(np.ascontiguousarray(residual), r)

    def part(begin: int, end: int) -> None:
        for chunk in chunks(begin, end, x_rows.shape[1]):
            out = y_rows[chunk]
            np.multiply(x_rows[chunk], scale, out=out)
            np.add(out, shift, out=out)
            if residual_rows is not None:
                np.add(out, residual_rows[chunk], out=out)
            if relu:
                relu_in_place(out)

    parallel(part, x_rows.shape[0])
    return y


def scale_and_shift(
    mean: np.ndarray, var: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, r: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm as x * scale + shift, both (R*C,), computed in float64. The shift is never -0.0 (mask_gradient)."""
    scale = weight / np.sqrt(var.astype(np.float64) + eps)
    shift = bias - mean * scale + 0.0
    return np.tile(scale.astype(np.float32), r), np.tile(shift.astype(np.float32), r)


def batch_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray,
    eps: float,
    training: bool,
    relu: bool,
    need_dresidual: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """See reference.batch_norm_backward.

    dx = weight/std * (g - Σg/M - x̂ Σ(g x̂)/M), with g the gradient behind the ReLU, is a*g + b*x + c per channel.
    """
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    channels = x.shape[-1]
    count = x.size // channels  # M
    r = repeats(count, channels)
    x_rows, dy_rows = wide(x, r), wide(dy, r)
    y_rows = wide(np.ascontiguousarray(y), r) if relu else None
    wide_mean = np.tile(mean, r)
    g_rows = dy_rows  # where the gradient behind the ReLU is read, or written first if it is needed as a whole
    if relu and need_dresidual:
        g_rows = wide(np.empty_like(x), r)
    dx = np.empty_like(x)
    dx_rows = wide(dx, r)

    def gradient(chunk: slice, out: np.ndarray) -> np.ndarray:
        if not relu:
            return dy_rows[chunk]
        mask_gradient(dy_rows[chunk], y_rows[chunk], out=out)
        return out

    def reduce(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        sum_g, sum_gx = 0.0, 0.0
        for chunk in chunks(begin, end, x_rows.shape[1]):
            block = x_rows[chunk]
            g = gradient(chunk, g_rows[chunk] if need_dresidual else scratch("masked", block.shape))
            product = scratch("centred", block.shape)
            np.subtract(block, wide_mean, out=product)
            np.multiply(product, g, out=product)
            sum_g = sum_g + sum_rows(g, channels)
            sum_gx = sum_gx + sum_rows(product, channels)
        return sum_g, sum_gx

    sums = parallel(reduce, x_rows.shape[0])
    (a, b, c), dweight, dbias = backward_coefficients(
        [sum(s) for s in zip(*sums)], count if training else None, mean, var, weight, eps
    )
    a, b, c = (np.tile(v, r) for v in (a, b, c))

    def apply(begin: int, end: int) -> None:
        for chunk in chunks(begin, end, x_rows.shape[1]):
            out = dx_rows[chunk]
            g = g_rows[chunk] if need_dresidual else gradient(chunk, scratch("masked", out.shape))
            scaled = scratch("centred", out.shape)
            np.multiply(g, a, out=scaled)
            np.multiply(x_rows[chunk], b, out=out)
            np.add(out, scaled, out=out)
            np.add(out, c, out=out)

    parallel(apply, x_rows.shape[0])
    dresidual = g_rows.reshape(x.shape) if need_dresidual else None
    return dx, dweight, dbias, dresidual


def backward_coefficients(
    sums: list[np.ndarray], count: int | None, mean: np.ndarray, var: np.ndarray, weight: np.ndarray, eps: float
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """(a, b, c) of dx = a*g + b*x + c, dweight and dbias, all (C,), from sums = [Σ g, Σ g (x - mean)].

    `count` is M, or None in evaluation, where dx = a*g. Computed in float64, returned in float32.
    """
    inverse_std = 1 / np.sqrt(var.astype(np.float64) + eps)
    dbias, dweight = sums[0], sums[1] * inverse_std
    a = weight * inverse_std
    b = -a * inverse_std * dweight / count if count else 0 * a
    c = -a * dbias / count - b * mean if count else 0 * a
    a, b, c, dweight, dbias = (v.astype(np.float32) for v in (a, b, c, dweight, dbias))
    return (a, b, c), dweight, dbias
