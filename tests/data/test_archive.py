"""Unpacking archives that cannot be trusted."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from minires.data.archive import extract
from minires.data.dataset import DataError


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
