"""Atomic writes: a crash leaves the old file or the new file, never a part of one.

    1. write and fsync a temporary file in the same folder: the bytes are on the disk, under another name
    2. rename the temporary file over the old one: one indivisible step of the file system
    3. fsync the folder: the new name is on the disk too

A process that has mapped the old file into memory, as `load_weights` does, keeps reading the old contents.

Reading order: any time; weights/ and train/ use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Inside `with atomic(path) as file:`, write to `file`. Leaving replaces `path`; an error leaves `path` alone.

    Raises `OSError` naming a `path` that cannot be written (no space, no permission); the old file is intact then.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # KeyboardInterrupt too: never leave half a file behind
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write does not name the file
        raise
    if os.name == "posix":  # Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
