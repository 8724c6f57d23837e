"""Downloads over an untrusted network: resumed after a break, verified by a checksum.

A download goes to `NAME.part` and continues where an earlier one stopped. The file gets its real name only after the
checksum was right: a file with the real name is a whole file.

Reading order: when data/cifar.py or models/pretrained.py downloads a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

CHUNK = 1 << 20  # bytes read at a time


class DownloadError(ValueError):
    """A download that failed. The text is one line with the address and the reason."""


class Checksum(NamedTuple):
    """The first hexadecimal digits, or all of them, of a file's "md5" or "sha256" sum."""

    algorithm: str
    digits: str

    def of(self, path: Path) -> str:
        """The same number of digits for the file at `path`."""
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()[: len(self.digits)]

    def __str__(self) -> str:
        return {"md5": "MD5", "sha256": "SHA-256"}[self.algorithm]


def looks_like_html(start: bytes) -> bool:
    """Whether a file with this start is a web page: a log-in or error page saved in place of the data."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def fault(path: Path, checksum: Checksum) -> str | None:
    """What is wrong with the file at `path`, in words; None when the checksum is right. Raises `OSError`."""
    found = checksum.of(path)
    if found == checksum.digits:
        return None
    with path.open("rb") as file:
        if looks_like_html(file.read(512)):
            return "this is a web page (HTML), not the file"
    return (
        f"the {checksum} sum of its {path.stat().st_size:,} bytes is {found}, expected {checksum.digits}: "
        "incomplete, damaged or not the official file"
    )


def download(
    url: str,
    path: Path,
    size: int | None,
    checksum: Checksum,
    log: Callable[[str], None] = print,
    timeout: float = 20.0,
) -> None:
    """Fetch `url`, a file of `size` bytes with that checksum, to `path`, with a progress bar on a terminal.

    With `size` None, asks the server for the size.

    Continues `path`.part from an interrupted download. Reconnects after a broken connection while each attempt adds
    bytes. `timeout` is in seconds, for connecting and for each read. Raises `DownloadError` when the download fails,
    and for a wrong checksum, after deleting the file.
    """
    part = path.with_name(path.name + ".part")
    if size is None:
        size = _size_of(url, timeout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        if have > size:  # left by another download
            part.unlink()
            have = 0
        log(f"downloading {url} to {path} ({size / 1e6:.0f} MB{f', {have / 1e6:.0f} MB are there' if have else ''})")
        # disable=None: no bar when the output is neither a terminal nor a notebook.
        with tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
            furthest = have
            while have < size:
                failure = _continue(url, part, have, size, timeout, bar)
                have = part.stat().st_size if part.exists() else 0
                if have <= furthest and have < size:
                    raise DownloadError(f"{url}: {failure or 'the connection closes before the file is complete'}")
                furthest = have
        if wrong := fault(part, checksum):
            part.unlink()
            raise DownloadError(f"{url}: {wrong}; what was downloaded is deleted")
        os.replace(part, path)
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error.strerror or error})") from None


def _size_of(url: str, timeout: float) -> int:
    """The number of bytes that the server has at `url`."""
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "minires"}, method="HEAD"), timeout=timeout) as response:
            size = response.headers.get("Content-Length", "")
    except (OSError, HTTPException) as error:  # URLError and HTTPError are OSErrors
        reason = error.reason if isinstance(error, URLError) else error or type(error).__name__
        raise DownloadError(f"{url}: no connection ({reason})") from None
    if not size.isdecimal():
        raise DownloadError(f"{url}: the server does not say how large the file is")
    return int(size)


def _continue(url: str, part: Path, have: int, size: int, timeout: float, bar: tqdm) -> str | None:
    """Append what the server sends to `part`, which has `have` bytes, until the connection ends.

    Returns the reason in words if the network failed, None if the server closed. Errors of the disk are raised.
    """
    # Imported here, not at the top: the import takes 40 ms, and most runs have their data already.
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    headers = {"User-Agent": "minires", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # Range Not Satisfiable: the server's file is shorter than `part`
            part.unlink()
            return "the server has a shorter file than expected (HTTP 416)"
        return f"HTTP error {error.code} ({error.reason})"
    except URLError as error:
        return f"no connection ({error.reason})"
    except (OSError, HTTPException) as error:
        return f"no connection ({error or type(error).__name__})"
    with response:
        offered, kind = response.headers.get("Content-Length"), response.headers.get("Content-Type", "unknown content")
        if kind.startswith("text/html"):
            return "the server sends a web page (HTML): is there a log-in page between this machine and the network?"
        if response.status == 206:  # Partial Content, as asked
            if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return f"the server continues at the wrong place ({response.headers.get('Content-Range')})"
        else:  # a server without ranges sends everything
            bar.reset()
            have = 0
        if offered is not None and offered != str(size - have):
            return f"the server offers {offered} bytes of {kind}, expected {size - have}"
        with part.open("ab" if have else "wb") as file:
            while have < size:
                try:
                    chunk = response.read(min(CHUNK, size - have))
                except (OSError, HTTPException) as error:
                    return f"the connection broke ({error or type(error).__name__})"
                if not chunk:
                    return None
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    return None
