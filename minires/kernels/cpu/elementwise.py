"""What the elementwise kernels share: wide rows, chunks, and a branch-free ReLU mask.

np.maximum(x, array of zeros) takes half as long as np.maximum(x, 0), whose scalar form misses the vector loop; a bit
mask a fifteenth of a ufunc with where= (docs/fast-cpu.md has the microseconds); and an operation between a (M, C) array
and a (C,) vector restarts its inner loop at each of the M rows, which is slow for small C. Hence:

    wide rows   x (M,C) seen as (M/R, R*C), per-channel vectors repeated R times: an inner loop of up to 4096 floats
    bit mask    the gradient's bits AND (all ones where the output was positive, else zeros)

Reading order: after winograd.py. Next: batch_norm.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minires.kernels.cpu.plan import even_parts

CHUNK_BYTES = 512 << 10  # of each array in a chunk: the few arrays of an operation fit into the second-level cache
WIDEST = 4096

_ZEROS = np.zeros(1 << 16, np.float32)


@lru_cache(maxsize=1024)
def repeats(rows: int, channels: int) -> int:
    """R: how many of `rows` positions are joined into one row; a power of two that divides `rows`."""
    r = 1
    while rows % (2 * r) == 0 and 2 * r * channels <= WIDEST:
        r *= 2
    return r


def wide(x: np.ndarray, r: int) -> np.ndarray:
    """x (..., C), contiguous, as (M/R, R*C)."""
    return x.reshape(-1, r * x.shape[-1])


def chunks(begin: int, end: int, row: int) -> Iterator[slice]:
    """Slices of at most half a megabyte of rows of `row` floats."""
    return (slice(a, b) for a, b in even_parts(begin, end, CHUNK_BYTES // (4 * row)))


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The same chunks of an array (rows, columns) itself."""
    return (rows[chunk] for chunk in chunks(0, *rows.shape))


def by_image_row(images: np.ndarray) -> np.ndarray:
    """A view (m, H, W*C) of (m,H,W,C), whose rows of pixels are contiguous: the inside of a frame, say."""
    m, h, w, c = images.shape
    return images.reshape(m, h, w * c)


def zeros(n: int) -> np.ndarray:
    """(n,) zeros."""
    return _ZEROS[:n] if n <= _ZEROS.size else np.zeros(n, np.float32)


def relu_in_place(x: np.ndarray) -> None:
    """x = max(x, 0) for x (rows, columns)."""
    np.maximum(x, zeros(x.shape[1]), out=x)


def mask_gradient(dy: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """out = dy where y > 0, else 0, for y = max(..., 0). `out` must be neither dy nor y."""
    mask = positive_mask(y, out)
    np.bitwise_and(mask, dy.view(np.int32), out=mask)


def positive_mask(y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """int32: all 32 bits set where y > 0, none elsewhere; written over `out`, or over y itself.

    Read as an integer, a positive float is positive, +0.0 is 0 and a negative one is negative. Negated, its sign bit
    says "positive"; shifted down by 31 it fills all bits. y must not hold -0.0: a sum never is unless both terms are.
    """
    mask = (y if out is None else out).view(np.int32)
    np.negative(y.view(np.int32), out=mask)
    return np.right_shift(mask, 31, out=mask)
