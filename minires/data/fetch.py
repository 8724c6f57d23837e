"""Getting an archive from the network onto the disk, and its files out of it, without trusting either.

A download goes to `NAME.part`, continues where an earlier one stopped, and gets its real name only after its MD5 sum
was right: a file with the real name is a whole file. Extraction copies the files that are expected and refuses an
archive that tries anything else.

Reading order: after dataset.py. Next: cifar.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from minires.data.dataset import DataError, NotAvailable

CHUNK = 1 << 20  # bytes read at a time


def md5_of(path: Path) -> str:
    """The MD5 sum of a file, as 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def looks_like_html(start: bytes) -> bool:
    """Whether a file that starts like this is a web page: the log-in or error page saved in place of the data."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def archive_fault(path: Path, md5: str) -> str | None:
    """What is wrong with the file at `path`, in words; None when it has the MD5 sum `md5`."""
    found = md5_of(path)
    if found == md5:
        return None
    with path.open("rb") as file:
        if looks_like_html(file.read(512)):
            return "this is a web page (HTML), not the archive"
    return (
        f"the MD5 sum of its {path.stat().st_size:,} bytes is {found}, expected {md5}: "
        "incomplete, damaged or not the official file"
    )


def download(
    url: str, path: Path, size: int, md5: str, log: Callable[[str], None] = print, timeout: float = 20.0
) -> None:
    """Fetch `url`, a file of `size` bytes with the MD5 sum `md5`, to `path`, with a progress bar on a terminal.

    Continues `path`.part from an interrupted download, and a broken connection as long as each attempt brings the
    file further. `timeout` is in seconds, for connecting and for each read. Raises `NotAvailable` when the file cannot
    be had, and also (after deleting it) when what came has the wrong MD5 sum.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        if have > size:  # left by something else
            part.unlink()
            have = 0
        log(f"downloading {url} to {path} ({size / 1e6:.0f} MB{f', {have / 1e6:.0f} MB are there' if have else ''})")
        # disable=None: no bar when the output is not a terminal.
        with tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
            furthest = have
            while have < size:
                failure = _continue(url, part, have, size, timeout, bar)
                have = part.stat().st_size if part.exists() else 0
                if have <= furthest and have < size:
                    raise NotAvailable(f"{url}: {failure or 'the connection closes before the file is complete'}")
                furthest = have
        if fault := archive_fault(part, md5):
            part.unlink()
            raise NotAvailable(f"{url}: {fault}; what was downloaded is deleted")
        os.replace(part, path)
    except OSError as error:
        raise NotAvailable(f"{path}: cannot be written ({error.strerror or error})") from None


def _continue(url: str, part: Path, have: int, size: int, timeout: float, bar: tqdm) -> str | None:
    """Append to `part`, which has `have` bytes, what the server sends until the connection ends.

    Returns the reason in words when the network failed, None when the server ended. Errors of the disk are raised.
    """
    # Here and not at the top because it takes 40 ms to import, and most runs have their data already.
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    headers = {"User-Agent": "minires", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # Range Not Satisfiable: the server's file is shorter than what is here
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
        else:  # a server that does not know ranges sends everything
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


def extract(archive: Path, folder: Path, files: Mapping[str, int]) -> None:
    """Copy `files` (name: most bytes it may have) from `folder.name`/ inside a .tar.gz `archive` to `folder`.

    Other files of the archive are left there. The files go to a temporary directory that gets its name at the end, so
    `folder` is complete or absent. Raises `DataError` for a member that is a link or a device or whose path is not
    plainly inside, for one that is too large, for one that is missing, and for an archive that cannot be read.
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
                    if member.size > 1 << 20:  # nothing large but the data is in the official archives
                        raise DataError(f"{archive}: refused, it has an unexpected large member {member.name!r}")
                    continue
                if member.size > files[name]:
                    raise DataError(
                        f"{archive}: refused, its member {member.name!r} has {member.size:,} bytes, "
                        f"expected at most {files[name]:,}"
                    )
                source = tar.extractfile(member)
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
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well
