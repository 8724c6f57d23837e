"""Tiny CIFAR folders in the official byte format, and the devices to test on."""

from __future__ import annotations

import io
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from minires.data import CIFAR10

IMAGES = 20  # per batch file, in place of 10,000


def py2_pickle(value) -> bytes:
    """`value` (dict, list, bytes, int or uint8 matrix) as Python 2 pickled it, protocol 2: the official file format."""

    def emit(v) -> bytes:
        if isinstance(v, dict):
            return b"}(" + b"".join(emit(x) for pair in v.items() for x in pair) + b"u"
        if isinstance(v, list):
            return b"](" + b"".join(map(emit, v)) + b"e"
        if isinstance(v, int):
            return b"K" + bytes([v]) if 0 <= v < 256 else b"J" + struct.pack("<i", v)
        if isinstance(v, bytes):
            return b"U" + bytes([len(v)]) + v if len(v) < 256 else b"T" + struct.pack("<i", len(v)) + v
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        return start + emit(v.shape[0]) + emit(v.shape[1]) + b"\x86" + dtype + b"\x89" + emit(v.tobytes()) + b"tb"

    return b"\x80\x02" + emit(value) + b"."


class Cifar:
    """A CIFAR-10 of 5 x 20 + 20 images: its Source, its contents, and ways to put it on disk."""

    def __init__(self) -> None:
        self.source = replace(
            CIFAR10,
            train=tuple(b._replace(images=IMAGES) for b in CIFAR10.train),
            test=tuple(b._replace(images=IMAGES) for b in CIFAR10.test),
        )
        rng = np.random.default_rng(0)
        self.rows = rng.integers(0, 256, (6, IMAGES, 3072), dtype=np.uint8)
        self.labels = rng.integers(0, 10, (6, IMAGES))
        self.files = {"batches.meta": py2_pickle({b"label_names": [b"class%d" % i for i in range(10)]})}
        for k, batch in enumerate((*self.source.train, *self.source.test)):
            self.files[batch.file] = self.batch(self.rows[k], self.labels[k].tolist())

    @staticmethod
    def batch(rows, labels, extension: bytes = b".png") -> bytes:
        names = [b"frog_%d" % i + extension for i in range(len(labels))]
        return py2_pickle({b"batch_label": b"a", b"labels": labels, b"data": rows, b"filenames": names})

    def lay_out(self, data_dir, **changed: bytes):
        """The folder, with the content of some files changed."""
        folder = data_dir / self.source.folder
        folder.mkdir(parents=True)
        for name, content in {**self.files, **changed}.items():
            (folder / name).write_bytes(content)
        return folder

    def archive(self, *extra: tarfile.TarInfo, leave_out: str = "") -> bytes:
        """cifar-10-python.tar.gz, with some members before the others."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            top = tarfile.TarInfo(self.source.folder)
            top.type, top.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(top)
            for member in extra:
                tar.addfile(member, io.BytesIO(b"x" * member.size) if member.isfile() else None)
            for name, content in {**self.files, "readme.html": b"<html>"}.items():
                member = tarfile.TarInfo(f"{self.source.folder}/{name}")
                member.size = len(content)
                if name != leave_out:
                    tar.addfile(member, io.BytesIO(content))
        return out.getvalue()


@pytest.fixture(scope="session")
def cifar() -> Cifar:
    return Cifar()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param
