"""Batch normalisation, a chunk at a time.

Written as array expressions, batch norm is about ten passes over arrays that do not fit into any cache. Here forward
has two: one measures mean and variance, one applies them. Backward has two as well: one reduces, one applies. Each
chunk of half a megabyte goes through all operations of a pass while the chunk is cached.

Mean and variance are taken in the same pass. Sums of x and x² in float32 would lose the variance of channels whose mean
is large, so the sums are of x - shift and (x - shift)², with the first value met as the shift. Each column of the wide
rows (elementwise.py) has sums of its own. Only the totals of all chunks are folded to channels, in float64.
Source: Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance, on shifted data and on merging.

Reading order: after elementwise.py. Next: branch.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from minires.cpu.elementwise import blocks, chunks, repeats, wide
from minires.cpu.matmul import ones
from minires.cpu.workers import parallel, scratch
from minires.reference import Running, update_running_statistics


def column_sum(x: np.ndarray) -> np.ndarray:
    """See reference.column_sum."""
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    rows = wide(x, repeats(x.size // channels, channels))

    def part(begin: int, end: int) -> np.ndarray:
        return sum((ones(block.shape[0]) @ block for block in blocks(rows[begin:end])), np.zeros(rows.shape[1]))

    return fold(parallel(part, rows.shape[0]), channels).astype(np.float32)


def fold(wide_rows: Iterable[np.ndarray], channels: int) -> np.ndarray:
    """(R*C,) each -> (C,): the sum of wide rows, and over their R positions."""
    total: Any = sum(wide_rows)  # an array: there is a row at least
    return total.reshape(-1, channels).sum(axis=0)


class Moments:
    """Mean and sum of squares around the mean, of wide rows (n, R*C) that come a chunk at a time."""

    def __init__(self) -> None:
        self.count = 0  # rows so far

    def add(self, rows: np.ndarray) -> None:
        """Take in a chunk."""
        if self.count == 0:
            self.shift = rows[0].copy()
            self.sum, self.squares = np.zeros((2, rows.shape[1]))  # of x - shift and of its square
        centred, one = scratch("centred", rows.shape), ones(rows.shape[0])
        np.subtract(rows, self.shift, out=centred)
        self.sum += one @ centred
        np.multiply(centred, centred, out=centred)
        self.squares += one @ centred
        self.count += rows.shape[0]

    @staticmethod
    def merged(parts: list[Moments], channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance per channel, (C,) in float32, of all that was added to any of `parts`."""
        parts = [part for part in parts if part.count]
        if not parts:  # an empty batch
            mean, var = np.full((2, channels), np.nan, np.float32)
            return mean, var
        means = [part.shift + part.sum / part.count for part in parts]  # (R*C,) each, in float64
        r = means[0].size // channels
        count = r * sum(part.count for part in parts)
        mean = fold((part.count * m for part, m in zip(parts, means)), channels) / count
        wide_mean = np.tile(mean, r)
        squares = (
            part.squares - part.sum**2 / part.count + part.count * (m - wide_mean) ** 2 for part, m in zip(parts, means)
        )  # around the mean of all, not that of the column
        return mean.astype(np.float32), (fold(squares, channels) / count).astype(np.float32)


def batch_norm_statistics(x: np.ndarray, running: Running | None = None) -> tuple[np.ndarray, np.ndarray]:
    """See reference.batch_norm_statistics."""
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    rows = wide(x, repeats(x.size // channels, channels))

    def part(begin: int, end: int) -> Moments:
        moments = Moments()
        for block in blocks(rows[begin:end]):
            moments.add(block)
        return moments

    mean, var = Moments.merged(parallel(part, rows.shape[0]), channels)
    if running:
        update_running_statistics(running, mean, var, x.size // channels)
    return mean, var


def batch_norm_apply(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> np.ndarray:
    """See reference.batch_norm_apply."""
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    r = repeats(x.size // channels, channels)
    scale, shift = scale_and_shift(mean, var, weight, bias, eps, r)
    y = np.empty_like(x)
    x_rows, y_rows = wide(x, r), wide(y, r)

    def part(begin: int, end: int) -> None:
        for chunk in chunks(begin, end, x_rows.shape[1]):
            np.multiply(x_rows[chunk], scale, out=y_rows[chunk])
            np.add(y_rows[chunk], shift, out=y_rows[chunk])

    parallel(part, x_rows.shape[0])
    return y


def scale_and_shift(
    mean: np.ndarray, var: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, r: int
) -> tuple[np.ndarray, np.ndarray]:
    """Batch norm as x * scale + shift, both (R*C,), computed in float64.

    The shift is never -0.0, and so x * scale + shift is never -0.0 (elementwise.positive_mask).
    """
    scale = weight / np.sqrt(var.astype(np.float64) + eps)
    shift = (bias - mean * scale).astype(np.float32) + np.float32(0)
    return np.tile(scale.astype(np.float32), r), np.tile(shift, r)


def batch_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray,
    eps: float,
    training: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See reference.batch_norm_backward.

    dx = weight/std * (dy - Σdy/M - x̂ Σ(dy x̂)/M) is a * (dy + b*x + c) per channel.
    """
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    channels = x.shape[-1]
    count = x.size // channels  # M
    r = repeats(count, channels)
    dx = np.empty_like(x)
    dy_rows, x_rows, dx_rows = wide(dy, r), wide(x, r), wide(dx, r)

    def reduce(begin: int, end: int) -> GradientSums:
        sums = GradientSums(mean, r)
        for chunk in chunks(begin, end, x_rows.shape[1]):
            sums.add(dy_rows[chunk], x_rows[chunk])
        return sums

    sums = GradientSums.merged(parallel(reduce, x_rows.shape[0]), channels)
    (a, b, c), dweight, dbias = backward_coefficients(sums, count if training else None, mean, var, weight, eps)
    a, b, c = (np.tile(v, r) for v in (a, b, c))

    def apply(begin: int, end: int) -> None:
        for chunk in chunks(begin, end, x_rows.shape[1]):
            out = dx_rows[chunk]
            np.multiply(x_rows[chunk], b, out=out)
            np.add(out, c, out=out)
            np.add(out, dy_rows[chunk], out=out)
            np.multiply(out, a, out=out)

    parallel(apply, x_rows.shape[0])
    return dx, dweight, dbias


class GradientSums:
    """Σ g and Σ g (x - mean) per wide column, of chunks of wide rows; mean (C,) is repeated R times."""

    def __init__(self, mean: np.ndarray, r: int) -> None:
        self.mean = np.tile(mean, r)
        self.g, self.gx = np.zeros((2, self.mean.size))

    def add(self, g: np.ndarray, x: np.ndarray) -> None:
        """Take in a chunk."""
        product, one = scratch("centred", g.shape), ones(g.shape[0])
        np.subtract(x, self.mean, out=product)
        np.multiply(product, g, out=product)
        self.g += one @ g
        self.gx += one @ product

    @staticmethod
    def merged(parts: list[GradientSums], channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Both sums per channel, (C,) in float64."""
        return fold((part.g for part in parts), channels), fold((part.gx for part in parts), channels)


def backward_coefficients(
    sums: tuple[np.ndarray, np.ndarray],
    count: int | None,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray,
    eps: float,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """(a, b, c) of dx = a * (g + b*x + c), dweight and dbias, all (C,), from sums = Σ g, Σ g (x - mean).

    `count` is M, or None in evaluation, where dx = a*g. Computed in float64, returned in float32.
    """
    inverse_std = 1 / np.sqrt(var.astype(np.float64) + eps)
    dbias, dweight = sums[0], sums[1] * inverse_std
    a = weight * inverse_std
    b = -inverse_std * dweight / count if count else 0 * a
    c = -dbias / count - b * mean if count else 0 * a
    a, b, c, dweight, dbias = (v.astype(np.float32) for v in (a, b, c, dweight, dbias))
    return (a, b, c), dweight, dbias
