from __future__ import annotations

import hashlib
import io
import os
import tarfile

import numpy as np
import pytest

from minires.data.dataset import DataError, NotAvailable
from minires.data.fetch import archive_fault, download, extract, looks_like_html, md5_of

CONTENT = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


def fetch(server, path, md5: str = MD5) -> None:
    download(server.url, path, len(CONTENT), md5, log=lambda line: None, timeout=5)


def test_download(server, tmp_path):
    server.content = CONTENT
    path = tmp_path / "new" / "file.tar.gz"
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file.tar.gz"]
    assert server.ranges == [None]


def test_an_interrupted_download_continues(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "f.part").write_bytes(CONTENT[:3000])
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000-"]


def test_a_part_that_is_complete_needs_no_request(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == []


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "f.part").write_bytes(CONTENT + b"x")
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.content, server.mode = CONTENT, "no ranges"
    (tmp_path / "f.part").write_bytes(b"other bytes")
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=11-"]


def test_a_server_that_does_not_say_the_length(server, tmp_path):
    server.content, server.mode = CONTENT, "no length"
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_connection_that_breaks_is_taken_up_again(server, tmp_path):
    server.content, server.mode = CONTENT, "breaks"
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-", "bytes=4000-"]


def test_what_has_the_wrong_checksum_is_deleted(server, tmp_path):
    server.content = b"y" * len(CONTENT)
    with pytest.raises(NotAvailable, match=f"the MD5 sum .* expected {MD5}: .* is deleted"):
        fetch(server, tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_a_wrong_part_costs_one_run_not_all(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "f.part").write_bytes(b"y" * 100)
    with pytest.raises(NotAvailable, match="MD5"):
        fetch(server, tmp_path / "f")
    fetch(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mode", "content", "part", "message"),
    [
        ("html", b"<html>log in</html>", b"", "the server sends a web page"),
        ("html", CONTENT, b"", "the server sends a web page"),
        ("missing", CONTENT, b"", "HTTP error 404"),
        ("good", CONTENT[:-1], b"", "offers 4999 bytes of application/x-gzip, expected 5000"),
        ("good", CONTENT + b"x", b"", "offers 5001 bytes"),
        ("good", CONTENT[:100], CONTENT[:200], "shorter file than expected"),
        ("no length", CONTENT[:100], b"", "the server has a shorter file|closes before the file is complete"),
        ("wrong place", CONTENT, CONTENT[:200], "continues at the wrong place"),
    ],
)
def test_servers_that_do_not_have_the_file(server, tmp_path, mode, content, part, message):
    server.mode, server.content = mode, content
    if part:
        (tmp_path / "f.part").write_bytes(part)
    with pytest.raises(NotAvailable, match=message) as caught:
        fetch(server, tmp_path / "f")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "f").exists()


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(NotAvailable, match="no connection"):
        download("http://127.0.0.1:1/file", tmp_path / "f", 10, MD5, log=lambda line: None)


def test_a_place_that_cannot_be_written_to(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotAvailable, match="cannot be written"):
        fetch(server, tmp_path / "file" / "f")


def test_archive_fault(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    assert md5_of(path) == MD5
    assert archive_fault(path, MD5) is None
    assert "5,000 bytes" in archive_fault(path, "0" * 32)
    path.write_bytes(b"\n<!DOCTYPE html><title>502</title>")
    assert "web page" in archive_fault(path, MD5)


def test_looks_like_html():
    assert looks_like_html(b"\xef\xbb\xbf  <HTML>")
    assert not looks_like_html(b"\x1f\x8b\x08\x00")
    assert not looks_like_html(b"")


# Extraction ------------------------------------------------------------------------------------------------


def unpack(cifar, tmp_path, content: bytes):
    (tmp_path / "a.tar.gz").write_bytes(content)
    folder = tmp_path / "data" / cifar.source.folder
    folder.parent.mkdir(exist_ok=True)
    extract(tmp_path / "a.tar.gz", folder, {name: len(content) for name, content in cifar.files.items()})
    return folder


def test_extract_takes_the_expected_files_only(cifar, tmp_path):
    folder = unpack(cifar, tmp_path, cifar.archive())
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == cifar.files  # not readme.html
    assert os.listdir(folder.parent) == [folder.name]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 3) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../escaped"),
        member("cifar-10-batches-py/../../escaped"),
        member("/tmp/escaped"),
        member("escaped"),
        member("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE, "../../escaped"),
        member("cifar-10-batches-py/data_batch_1", tarfile.LNKTYPE, "/etc/passwd"),
        member("cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE),
        member("cifar-10-batches-py/data_batch_1", tarfile.CHRTYPE),
        member("cifar-10-batches-py/data_batch_1", size=100_000),
        member("cifar-10-batches-py/bomb", size=2_000_000),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}-{info.size}",
)
def test_extract_refuses_an_archive_with_a_suspicious_member(cifar, tmp_path, evil):
    with pytest.raises(DataError, match="refused") as caught:
        unpack(cifar, tmp_path, cifar.archive(evil))
    assert repr(evil.name) in str(caught.value)
    assert os.listdir(tmp_path / "data") == []  # neither the folder nor what was copied so far
    assert sorted(os.listdir(tmp_path)) == ["a.tar.gz", "data"]


def test_extract_says_what_is_missing(cifar, tmp_path):
    with pytest.raises(DataError, match="has no data_batch_3 in cifar-10-batches-py/"):
        unpack(cifar, tmp_path, cifar.archive(leave_out="data_batch_3"))
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_extract_from_a_damaged_archive(cifar, tmp_path, damage):
    good = cifar.archive()
    half = len(good) // 2
    bad = {
        "truncated": good[:half],
        "flipped": good[:half] + bytes(b ^ 255 for b in good[half : half + 100]) + good[half + 100 :],
        "text": b"<html>not an archive</html>",
        "empty": b"",
    }[damage]
    with pytest.raises(DataError, match=r"cannot be unpacked|has no ") as caught:
        unpack(cifar, tmp_path, bad)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "data") == []


def test_extract_leaves_a_folder_that_is_there_alone(cifar, tmp_path):
    folder = cifar.lay_out(tmp_path / "data")
    (folder / "mine").write_text("keep")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(cifar, tmp_path, cifar.archive())
    assert (folder / "mine").read_text() == "keep"
    assert os.listdir(tmp_path / "data") == [folder.name]


def test_the_archive_helper_makes_real_archives(cifar):
    with tarfile.open(fileobj=io.BytesIO(cifar.archive(member("../escaped")))) as tar:
        assert "../escaped" in tar.getnames()
