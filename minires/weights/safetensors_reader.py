"""The safetensors format: 8 bytes with the length of a header, the header in JSON, and the numbers.

The header maps each name to {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [begin, end]}, in bytes from the
end of the header; "__metadata__" in it may hold texts. The tensors fill the rest of the file without gap or overlap.
The library `safetensors` writes our files, and reads the states of our own runs (train/checkpoint.py). Files from
elsewhere are read here, because it copies, and because NumPy's types, to which it is bound, lack bfloat16.

Source: https://github.com/huggingface/safetensors, README, "Format".
Reading order: after torch_writer.py. Next: npz_reader.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minires.weights.mapped import BFLOAT16, WeightsError, check_shape, description_limit, item_bytes, vector

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": BFLOAT16,
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def is_safetensors(buffer: memoryview) -> bool:
    """Whether a file that begins like this means to be one: a header that begins with a brace."""
    return len(buffer) > 8 and buffer[8] == ord("{")


def read(path: Path, buffer: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises `WeightsError`."""
    header, begin = _header(path, buffer)
    spans = []
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = _entry(path, name, entry)
        count = check_shape(shape, f"{path}: {name}")
        if end - start != count * item_bytes(dtype):
            raise WeightsError(
                f"{path}: {name} has {end - start:,} bytes, {dtype} {shape} expects {count * item_bytes(dtype):,}"
            )
        if begin + end > len(buffer):
            raise WeightsError(f"{path}: is truncated: {name} ends at byte {begin + end:,} of {len(buffer):,}")
        spans.append((start, end, name))
        arrays[name] = (dtype, shape, start)
    filled = 0
    for start, end, name in sorted(spans):
        if start != filled:
            raise WeightsError(f"{path}: {name} begins at byte {start:,}, expected {filled:,}: a gap or an overlap")
        filled = end
    if begin + filled != len(buffer):
        raise WeightsError(f"{path}: has {len(buffer) - begin - filled:,} bytes behind its last array")
    return {
        name: vector(buffer, begin + start, int(np.prod(shape, dtype=object)), dtype).reshape(shape)
        for name, (dtype, shape, start) in arrays.items()
    }


def metadata(path: Path, buffer: memoryview) -> dict[str, str]:
    """The texts in the header. Raises `WeightsError`."""
    found = _header(path, buffer)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise WeightsError(f"{path}: its __metadata__ is not a dict of texts")
    return found


def _header(path: Path, buffer: memoryview) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the numbers begin."""
    size = int.from_bytes(buffer[:8], "little")
    if size > len(buffer) - 8:
        raise WeightsError(f"{path}: is truncated: its header has {size:,} bytes, the file {len(buffer):,}")
    if size > description_limit(len(buffer)):
        raise WeightsError(f"{path}: refused, its header has {size:,} of its {len(buffer):,} bytes")
    try:
        header = json.loads(bytes(buffer[8 : 8 + size]), object_pairs_hook=_dict_without_duplicates)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise WeightsError(f"{path}: not a readable safetensors file, its header is damaged ({error})") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: not a readable safetensors file, its header is no dict")
    return header, 8 + size


def _dict_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """The type, shape and bytes of one tensor."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{path}: {name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        shown = repr(dtype)[:50] if isinstance(dtype, str) else type(dtype).__name__
        raise WeightsError(f"{path}: {name} has the dtype {shown}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise WeightsError(f"{path}: the shape or the data_offsets of {name} are no lists")
    if any(type(n) is not int for n in offsets) or not 0 <= offsets[0] <= offsets[1]:
        raise WeightsError(f"{path}: the data_offsets of {name} are not two ascending bytes")
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])
