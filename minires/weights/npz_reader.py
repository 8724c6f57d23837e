"""NumPy's .npz files: a zip file with one NAME.npy for each array, which is a header of one line, and the numbers.

Arrays that are stored as they are stay in the mapped file where that is possible: NumPy does not care where in the zip
file they begin, so most are not aligned and are copied. Compressed ones (np.savez_compressed) are unpacked, to no
more than twice the size of the file.

Source: numpy.lib.format.
Reading order: after safetensors_reader.py. Next: models/pretrained.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from minires.weights.archive import Archive
from minires.weights.mapped import WeightsError, check_shape, vector

MAGIC = b"\x93NUMPY"
HEADER_BYTES = 4096  # at most, of one array; NumPy writes 118 for nearly all
HEADER = re.compile(
    r"\{'descr': '([<>|=])([a-z]\d{0,2})', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), ?\} *\n?"
)
DTYPES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128", "b1": "bool",
    "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
}  # fmt: skip


def read(path: Path, archive: Archive) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises `WeightsError`."""
    packed = [member for name, member in archive.members.items() if not archive.is_stored(name)]
    total, limit = sum(member.file_size for member in packed), max(2 * len(archive.buffer), 1 << 20)
    if total > limit:
        raise WeightsError(
            f"{path}: refused, its {len(archive.buffer):,} bytes unpack to {total:,}, more than twice as many; "
            "it may be a zip bomb. If you trust it, use numpy.load"
        )
    arrays = {}
    for name in archive.members:
        if not name.endswith(".npy"):
            raise WeightsError(f"{path}: not a readable .npz file, {name!r:.200} in it is no .npy")
        if archive.is_stored(name):
            start, size = archive.place(name)
            buffer = archive.buffer[start : start + size]
        else:
            buffer = archive.unpack(name).data
        arrays[name.removesuffix(".npy")] = _array(path, name, buffer)
    return arrays


def _array(path: Path, name: str, buffer: memoryview) -> np.ndarray:
    """The array in one .npy."""
    if bytes(buffer[:6]) != MAGIC or len(buffer) < 12 or buffer[6] not in (1, 2, 3):
        raise WeightsError(f"{path}: not a readable .npz file, {name!r:.200} in it is no .npy")
    length_bytes = 2 if buffer[6] == 1 else 4  # version 1 and the later ones
    length, begin = int.from_bytes(buffer[8 : 8 + length_bytes], "little"), 8 + length_bytes
    text = bytes(buffer[begin : begin + min(length, HEADER_BYTES)]).decode("latin1")
    match = HEADER.fullmatch(text)
    if match is None or match[2] not in DTYPES or len(text) != length:
        raise WeightsError(f"{path}: not a readable .npz file, {name!r:.99} is no array of numbers ({text[:80]!r})")
    order, dtype, fortran = match[1], DTYPES[match[2]], match[3] == "True"
    try:
        shape = tuple(int(n) for n in match[4].split(",") if n.strip())
    except ValueError:
        raise WeightsError(f"{path}: {name} has the shape ({match[4]:.200}), expected whole numbers") from None
    count, begin = check_shape(shape, f"{path}: {name}"), begin + length
    expected = count * np.dtype(dtype).itemsize
    if len(buffer) - begin != expected:
        raise WeightsError(f"{path}: {name} has {len(buffer) - begin:,} bytes of numbers, {shape} expects {expected:,}")
    numbers = vector(buffer, begin, count, dtype, ">" if order == ">" else "<")
    return numbers.reshape(shape, order="F" if fortran else "C")
