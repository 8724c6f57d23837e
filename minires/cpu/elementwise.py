"""ReLU, and what all elementwise kernels share: wide rows, chunks, and masks without branches.

Calls that compute the same differ in speed (docs/fast-cpu.md has the microseconds):

    np.maximum(x, array of zeros)   takes half as long as np.maximum(x, 0), whose scalar form misses the vector loop
    a mask, multiplied or ANDed     takes a fifteenth of the time of a ufunc with where=
    wide rows                       An operation of a (M,C) array and a (C,) vector restarts its inner loop at each of
                                    the M rows. For small C that is slow. So x (M,C) is seen as (M/R, R*C), and the
                                    vector is repeated R times: the inner loop runs over up to 4096 floats.

Reading order: after winograd.py. Next: batch_norm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from minires import reference
from minires.cpu.plan import even_parts
from minires.cpu.workers import parallel

CHUNK_BYTES = 512 << 10  # of each array in a chunk: the few arrays of an operation fit into the second-level cache
WIDEST = 4096
SMALL = 1 << 15  # elements of x; below, the reference's relu is as fast
SMALL_GRADIENT = 1 << 20  # the same for relu_backward, whose calls are not faster but split over the cores

_ZEROS = np.zeros(CHUNK_BYTES // 4, np.float32)


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


def relu(x: np.ndarray) -> np.ndarray:
    """See reference.relu."""
    if x.size < SMALL or x.dtype != np.float32:
        return reference.relu(x)
    y = np.empty_like(x)
    _each_chunk(_relu, x, y)
    return y


def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """See reference.relu_backward."""
    if y.size < SMALL_GRADIENT or dy.dtype != np.float32 or y.dtype != np.float32:
        return reference.relu_backward(dy, y)
    dx = np.empty_like(y)
    _each_chunk(_relu_backward, dy, y, dx)
    return dx


def _relu(x: np.ndarray, y: np.ndarray) -> None:
    """y = max(x, 0)."""
    np.maximum(x, zeros(x.shape[-1]), out=y)


def _relu_backward(dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
    """The mask, 1.0 or 0.0, is a factor as in the reference, so that NaN and -0.0 give the same bits.

    The mask as bools would take a tenth longer, because NumPy converts the bools in small pieces.
    """
    np.copyto(dx, y > 0)
    np.multiply(dy, dx, out=dx)


def _each_chunk(compute: Callable[..., None], *arrays: np.ndarray) -> None:
    """compute(*chunks) for all chunks of arrays of one shape, split over the workers.

    Contiguous arrays are cut as (size,). Arrays of another layout are cut along their first axis, without a copy.
    """
    if all(array.flags.c_contiguous for array in arrays):
        arrays = tuple(array.reshape(-1) for array in arrays)
    n, size = arrays[0].shape[0], arrays[0].size

    def part(begin: int, end: int) -> None:
        for a, b in even_parts(begin, end, CHUNK_BYTES // 4 * n // size):
            compute(*(array[a:b] for array in arrays))

    parallel(part, n, 4 * size * len(arrays))


# What the other kernels use, on chunks that are cached. Their masks are read from the bits.


def relu_in_place(x: np.ndarray) -> None:
    """x = max(x, 0) for x (rows, columns)."""
    _relu(x, x)


def mask_gradient(dy: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """out = dy where y > 0, else 0, for y = max(..., 0). `out` must be neither dy nor y."""
    mask = positive_mask(y, out)
    np.bitwise_and(mask, dy.view(np.int32), out=mask)


def positive_mask(y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """int32: all 32 bits set where y > 0 or y is NaN, none elsewhere; written over `out`, or over y itself.

    Read as an integer, a positive float is positive, +0.0 is 0, and a negative float is negative. The sign bit of the
    negated integer says "positive", and a shift by 31 copies the sign bit to all bits.
    y must not hold -0.0. A sum is -0.0 only where both terms are.
    """
    mask = (y if out is None else out).view(np.int32)
    np.negative(y.view(np.int32), out=mask)
    return np.right_shift(mask, 31, out=mask)
