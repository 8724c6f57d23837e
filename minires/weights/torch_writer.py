"""Writing PyTorch's checkpoints without PyTorch: files that `torch.load(path, weights_only=True)` reads.

The zip layout of torch_reader.py. The pickle is written instruction by instruction, because Python's own pickler
insists on importing what it names, and torch is not here:

    )R           an empty tuple, and a call with it
    (  ...  t    a mark, and a tuple of everything since it
    (  ...  u    a mark, and the names and values since it put into the dict below
    Q            the tuple on the stack is a persistent id

Reading order: after torch_reader.py. Next: safetensors_reader.py.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minires.weights.mapped import WeightsError
from minires.weights.torch_reader import STORAGES

ALIGNMENT = 64  # bytes: where PyTorch puts storages, so that they can be mapped
STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def write(path: Path, file: BinaryIO, state: Mapping[str, np.ndarray]) -> None:
    """Write the state dict `state` to `file`; `path` is its name for errors.

    Raises `WeightsError` for an array of a type that PyTorch's storages do not have.
    """
    for name, array in state.items():
        if array.dtype.name not in STORAGE_OF:
            raise WeightsError(f"{path}: {name} is {array.dtype}, expected one of {', '.join(STORAGE_OF)}")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "archive/data.pkl", memoryview(pickle_of(state)))
        _add(archive, file, "archive/byteorder", memoryview(b"little"))
        for key, array in enumerate(state.values()):
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            _add(archive, file, f"archive/data/{key}", little.reshape(-1).view(np.uint8).data)
        _add(archive, file, "archive/version", memoryview(b"3\n"))


def pickle_of(state: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors; tensor number k has the storage k."""
    parts = [b"\x80\x02", ORDERED_DICT, b"("]
    for key, (name, array) in enumerate(state.items()):
        strides = np.cumprod([1, *array.shape[:0:-1]], dtype=object)[::-1] if array.ndim else ()
        storage_type = b"ctorch\n" + STORAGE_OF[array.dtype.name].encode() + b"\n"
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n("]
        parts += [b"(", _text("storage"), storage_type, _text(str(key)), _text("cpu"), _integer(array.size), b"tQ"]
        parts += [_integer(0), _integers(array.shape), _integers(strides)]
        parts += [b"\x89", ORDERED_DICT, b"tR"]  # no gradient (False), no hooks
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)  # LONG1 of 8 bytes: any size


def _integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: memoryview) -> None:
    """A member whose content begins at a multiple of 64 bytes: its header is made longer by a field without meaning."""
    member = zipfile.ZipInfo(name)
    begin = file.tell() + 30 + len(name.encode()) + 4  # the header, and the head of the field
    padding = -begin % ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # what PyTorch does too
    archive.writestr(member, content)
