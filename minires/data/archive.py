"""Extraction of a data set's files from an untrusted archive.

Only the expected files are copied. An archive with unsafe members is refused.

Reading order: when CIFAR-10 is downloaded. Next: cifar.py.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from minires.data.dataset import DataError

CHUNK = 1 << 20  # bytes copied at a time


def extract(archive: Path, folder: Path, files: Mapping[str, int]) -> None:
    """Copy `files` (name: largest size in bytes) from `folder.name`/ inside a .tar.gz `archive` to `folder`.

    Ignores other files of the archive. The files go to a temporary directory, which is renamed at the end: `folder` is
    complete or absent. Raises `DataError` for a member that is a link or a device, or whose path is not plainly inside;
    for a member that is too large or missing; and for an archive that cannot be read.
    """
    missing = set(files)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot unpack {archive.name} there ({error.strerror or error})") from None
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                parts = member.name.split("/")
                if parts[0] != folder.name or ".." in parts or not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{archive}: refused, its member {member.name!r} is not a plain file inside {folder.name}/"
                    )
                name = "/".join(parts[1:])
                if name not in missing or not member.isfile():
                    if member.size > 1 << 20:  # the official archives hold nothing large but the data
                        raise DataError(f"{archive}: refused, it has an unexpected large member {member.name!r}")
                    continue
                if member.size > files[name]:
                    raise DataError(
                        f"{archive}: refused, its member {member.name!r} has {member.size:,} bytes, "
                        f"expected at most {files[name]:,}"
                    )
                source = tar.extractfile(member)
                assert source is not None  # as of every plain file
                with source, (temporary / name).open("wb") as target:
                    shutil.copyfileobj(source, target, CHUNK)
                missing.remove(name)
        if missing:
            raise DataError(f"{archive}: has no {', '.join(sorted(missing))} in {folder.name}/")
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.rename(temporary, folder)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked to {folder} ({error}); if it is damaged, delete it") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already after a success
