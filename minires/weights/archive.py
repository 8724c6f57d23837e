"""The members of a zip file, which PyTorch's checkpoints and NumPy's .npz files are.

The standard library reads the list of members. That list is not trusted: it must have a size in proportion to the file,
and no two members may share bytes (a "zip bomb" of a few kilobytes that holds the same megabytes many times).

Reading order: after mapped.py. Next: torch_reader.py.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from minires.weights.mapped import WeightsError, description_limit

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature; ...; length of the name, and of the extra field, that follow
CHUNK = 1 << 20


class Archive:
    """The members of the zip file in `buffer`. Raises `WeightsError` if it is damaged or suspicious."""

    def __init__(self, path: Path, buffer: memoryview):
        self.path, self.buffer = path, buffer
        try:
            self._zip = zipfile.ZipFile(_File(buffer))
        except Exception as error:  # zipfile raises a dozen kinds for damaged files
            raise WeightsError(f"{path}: not a readable zip file, truncated or damaged ({error})") from None
        self.members: dict[str, zipfile.ZipInfo] = {}
        self._start: dict[str, int] = {}
        for member in self._zip.infolist():
            if member.filename in self.members:
                raise WeightsError(f"{path}: refused, {member.filename!r} is in it twice")
            self.members[member.filename] = member
            self._start[member.filename] = self._data_start(member)
        self._check_overlap()

    def place(self, name: str) -> tuple[int, int]:
        """(first byte, number of bytes) of a member that is stored as it is. Raises `WeightsError`."""
        if name not in self.members:
            raise WeightsError(f"{self.path}: {name} is missing")
        member = self.members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise WeightsError(
                f"{self.path}: {name} is compressed ({member.compress_size:,} to {member.file_size:,} bytes), "
                "which torch.save never does; it may be a zip bomb"
            )
        return self._start[name], member.file_size

    def is_stored(self, name: str) -> bool:
        """Whether the member is in the file as it is, not compressed."""
        return self.members[name].compress_type == zipfile.ZIP_STORED

    def unpack(self, name: str) -> np.ndarray:
        """The bytes of a compressed member, of which `file_size` are allocated and not one more."""
        member = self.members[name]
        try:
            data = np.empty(member.file_size, np.uint8)
            position = 0
            with self._zip.open(member) as file:
                while part := file.read(CHUNK):
                    if position + len(part) > len(data):
                        raise WeightsError(f"{self.path}: {name} is larger than it says")
                    data[position : position + len(part)] = np.frombuffer(part, np.uint8)
                    position += len(part)
        except WeightsError:
            raise
        except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, struct.error) as error:
            raise WeightsError(f"{self.path}: {name} cannot be unpacked ({error})") from None
        if position != len(data):
            raise WeightsError(f"{self.path}: {name} has {position:,} bytes, expected {len(data):,}")
        return data

    def one_ending_with(self, suffix: str) -> str:
        """The only member called that, in a folder or not. Raises `WeightsError`."""
        found = [name for name in self.members if name == suffix or name.endswith(f"/{suffix}")]
        if len(found) != 1:
            raise WeightsError(f"{self.path}: has {len(found)} members called {suffix}, expected one")
        return found[0]

    def _data_start(self, member: zipfile.ZipInfo) -> int:
        header = bytes(self.buffer[member.header_offset : member.header_offset + LOCAL_HEADER.size])
        if member.header_offset < 0 or len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise WeightsError(f"{self.path}: truncated or damaged, {member.filename!r} is not where its list says")
        _, name, extra = LOCAL_HEADER.unpack(header)
        return member.header_offset + LOCAL_HEADER.size + name + extra

    def _check_overlap(self) -> None:
        end, before = 0, ""
        for member in sorted(self.members.values(), key=lambda member: member.header_offset):
            if member.header_offset < end:
                raise WeightsError(
                    f"{self.path}: refused, {member.filename!r} and {before!r} share bytes; it may be a zip bomb"
                )
            end, before = self._start[member.filename] + member.compress_size, member.filename
        if end > len(self.buffer):
            raise WeightsError(f"{self.path}: is truncated: {before!r} ends behind the end of the file")


class _File:
    """The buffer as a file, for zipfile, which reads the list of members as one piece.

    Each member of 46 bytes in that list becomes an object of several hundred, so its size is limited before it is read.
    """

    def __init__(self, buffer: memoryview):
        self.buffer, self.position = buffer, 0
        self.limit = max(description_limit(len(buffer)), CHUNK)

    def read(self, count: int = -1) -> bytes:
        if count > self.limit:
            raise OSError(f"a list of members with {count:,} of {len(self.buffer):,} bytes; it may be a zip bomb")
        part = bytes(self.buffer[self.position :][: self.limit if count < 0 else count])
        self.position += len(part)
        return part

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.buffer)}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning of the file")
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True
