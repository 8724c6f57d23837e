"""Writing a file so that a crash cannot spoil it.

    1. write a temporary file in the same folder, and fsync it: the bytes are on the disk, under another name
    2. rename it over the old one: one indivisible step of the file system
    3. fsync the folder: the new name is on the disk too

A file is either the old one or the new one, whenever the power fails. A process that has mapped the old file into
memory, as `load_weights` does, keeps reading the old contents.

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
    """Inside `with atomic(path) as file:` what is written to `file` becomes `path`, or nothing happens to `path`.

    Raises `OSError` naming `path` when it cannot be written (no space, no permission); the old file is intact then.
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
            raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write does not say which file
        raise
    if os.name == "posix":  # Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
