"""Downloading, from a server that misbehaves."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from minires.files.download import Checksum, DownloadError, download, fault, looks_like_html

CONTENT = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
MD5 = Checksum("md5", hashlib.md5(CONTENT).hexdigest())
SHA = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest()[:8])


def fetch(server, path, checksum: Checksum = MD5) -> None:
    download(server.url, path, len(CONTENT), checksum, log=lambda line: None, timeout=5)


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


def test_the_first_digits_of_a_sha256_sum_will_do(server, tmp_path):
    server.content = CONTENT
    fetch(server, tmp_path / "f", SHA)
    assert (tmp_path / "f").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=f"the SHA-256 sum .* is {SHA.digits}, expected 01234567"):
        fetch(server, tmp_path / "g", Checksum("sha256", "01234567"))


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
    with pytest.raises(DownloadError, match=f"the MD5 sum .* expected {MD5.digits}: .* is deleted"):
        fetch(server, tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_a_wrong_part_costs_one_run_not_all(server, tmp_path):
    server.content = CONTENT
    (tmp_path / "f.part").write_bytes(b"y" * 100)
    with pytest.raises(DownloadError, match="MD5"):
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
    with pytest.raises(DownloadError, match=message) as caught:
        fetch(server, tmp_path / "f")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "f").exists()


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DownloadError, match="no connection"):
        download("http://127.0.0.1:1/file", tmp_path / "f", 10, MD5, log=lambda line: None)


def test_a_place_that_cannot_be_written_to(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(server, tmp_path / "file" / "f")


def test_fault(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    assert fault(path, MD5) is None
    assert fault(path, SHA) is None
    assert "the MD5 sum of its 5,000 bytes is" in fault(path, Checksum("md5", "0" * 32))
    assert f"the SHA-256 sum of its 5,000 bytes is {SHA.digits}, expected 0000" in fault(
        path, Checksum("sha256", "0000aaaa")
    )
    path.write_bytes(b"\n<!DOCTYPE html><title>502</title>")
    assert "web page" in fault(path, MD5)


def test_looks_like_html():
    assert looks_like_html(b"\xef\xbb\xbf  <HTML>")
    assert not looks_like_html(b"\x1f\x8b\x08\x00")
    assert not looks_like_html(b"")
