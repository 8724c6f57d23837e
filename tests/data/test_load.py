"""data.load: what each name may and may not substitute."""

from __future__ import annotations

import pytest

from minires import data

WARNING = "NOT CIFAR-10: continuing with Shapes-10"


@pytest.fixture
def unreachable(monkeypatch):
    """No network, whatever machine the tests run on."""

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def quick_shapes(monkeypatch):
    """Shapes-10 with 30 images."""
    monkeypatch.setattr(data, "shapes10", lambda data_dir, log: data.shapes.shapes10(data_dir, 0, 20, 10, log))


@pytest.mark.parametrize("download", [True, False])
def test_auto_warns_and_takes_shapes_when_there_is_no_cifar(tmp_path, unreachable, quick_shapes, download):
    lines: list[str] = []
    d = data.load("auto", tmp_path, download=download, log=lines.append)
    assert d.name == "Shapes-10"
    assert [line for line in lines if line.startswith("WARNING") and WARNING in line]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_name_never_substitutes(tmp_path, unreachable, quick_shapes, name):
    with pytest.raises(data.NotAvailable, match=r"no network in this test.*put it at"):
        data.load(name, tmp_path, log=lambda line: None)


def test_auto_takes_the_cifar_10_that_is_there(tmp_path, cifar, monkeypatch):
    cifar.lay_out(tmp_path)
    original = data.cifar10
    monkeypatch.setattr(data, "cifar10", lambda *args: original(*args, source=cifar.source))
    assert data.load("auto", tmp_path).name == data.load("cifar10", tmp_path).name == "CIFAR-10 (modified)"


def test_auto_does_not_hide_a_cifar_10_that_is_damaged(tmp_path, unreachable):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(data.DataError, match="cannot be read"):
        data.load("auto", tmp_path)


def test_auto_does_not_hide_a_damaged_archive(tmp_path, unreachable):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>")
    with pytest.raises(data.DataError, match="web page"):
        data.load("auto", tmp_path)


def test_shapes(tmp_path, quick_shapes):
    assert data.load("shapes", tmp_path, log=lambda line: None).name == "Shapes-10"


def test_an_unknown_name(tmp_path):
    with pytest.raises(
        ValueError, match="mnist: no such folder of pictures, and none of auto, cifar10, cifar100, shapes"
    ):
        data.load("mnist", tmp_path)
