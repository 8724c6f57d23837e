"""The bytes of a file as arrays, without reading them: the file is mapped into memory.

Mapping takes no time and no memory: the operating system reads a page when it is first touched. The mapping is
private: arrays can be written to, and what is written stays in this process.

Reading order: first in weights/. Next: archive.py.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Literal

import numpy as np

Order = Literal["<", ">"]  # of the bytes of a number: the lowest first, or the highest
BFLOAT16 = "bfloat16"  # NumPy has no such type: these become float32, exactly

# A file describes its arrays, and a description of one byte can become a Python object of a hundred. So descriptions
# may have this share of the file, or, in small files, this many bytes. ResNet-152's has 1/1500 of its file.
DESCRIPTION_SHARE, DESCRIPTION_BYTES = 16, 1 << 20


class WeightsError(ValueError):
    """A file of weights that cannot be read or written; the message names the file and what is wrong with it."""


def map_file(path: Path) -> memoryview:
    """The bytes of the file at `path`, mapped. Raises `OSError`, and `WeightsError` for an empty file."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise WeightsError(f"{path}: not a readable file of weights, it is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def description_limit(file_bytes: int) -> int:
    """Most bytes that the descriptions in a file of this size may have."""
    return max(DESCRIPTION_BYTES, file_bytes // DESCRIPTION_SHARE)


def item_bytes(dtype: str) -> int:
    """Bytes of one number in the file."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def vector(buffer: memoryview, offset: int, count: int, dtype: str, order: Order = "<") -> np.ndarray:
    """`count` numbers of type `dtype` from byte `offset` on, as an array (count,).

    A view of the buffer if it can be: numbers that are aligned and in this machine's byte order (`order` is the file's,
    "<" or ">"). Otherwise a copy. bfloat16 becomes float32, which has the same exponent and 16 more bits after it.
    """
    stored = np.dtype("uint16" if dtype == BFLOAT16 else dtype)
    numbers = np.frombuffer(buffer, stored.newbyteorder(order), count, offset)
    if dtype == BFLOAT16:
        bits = numbers.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype == "bool":
        return np.frombuffer(buffer, np.uint8, count, offset) != 0  # a byte of 2 is no bool that NumPy can work with
    if not numbers.dtype.isnative:
        return numbers.astype(stored)
    return numbers if numbers.flags.aligned else numbers.copy()


def check_shape(shape: tuple, what: str) -> int:
    """The number of elements of `shape`. Raises `WeightsError`, beginning with `what`, if an array cannot have it."""
    if len(shape) > 32 or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
        raise WeightsError(f"{what} has a shape that is none, expected up to 32 sizes of at least 0")
    count = math.prod(shape)
    # Every partial product, too: NumPy multiplies the sizes before it sees that one is zero.
    if math.prod(n for n in shape if n) >= 1 << 60:
        raise WeightsError(f"{what} has the shape {shape}, more elements than memory has bytes")
    return count
