"""Weights that others have trained: where they are looked for, what is said, and what does not fit."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

import minires as mr
from minires import models, nn
from minires.models import pretrained, recognise


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    path = tmp_path / "cache"
    monkeypatch.setenv("MINIRES_CACHE", str(path))
    return path


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """A ResNet-18 and the content of its file."""
    model = models.resnet18(generator=np.random.default_rng(5))
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    mr.save_weights(model, path)
    return model, path.read_bytes()


@pytest.fixture
def published(server, resnet18, monkeypatch):
    """A server that has it, under the name with its checksum; the name."""
    name = f"resnet18-{hashlib.sha256(resnet18[1]).hexdigest()[:8]}.pth"
    server.content = resnet18[1]
    monkeypatch.setitem(pretrained.IMAGENET, 18, name)
    monkeypatch.setattr(pretrained, "ADDRESS", server.url.removesuffix("file.tar.gz"))
    monkeypatch.setattr(pretrained.imagenet_file, "__defaults__", (print, pretrained.ADDRESS))
    return name


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_imagenet_weights_are_downloaded_once(server, published, cache, resnet18, capsys):
    assert_equal(models.resnet18(weights="imagenet"), resnet18[0])
    assert "downloading http://127.0.0.1" in capsys.readouterr().out
    assert os.listdir(cache) == [published]
    assert_equal(models.resnet18(weights="imagenet"), resnet18[0])
    assert capsys.readouterr().out == ""
    assert server.ranges == [None]


def test_an_interrupted_download_continues(server, published, cache, resnet18):
    cache.mkdir()
    (cache / f"{published}.part").write_bytes(resnet18[1][:1_000_000])
    assert_equal(models.resnet18(weights="imagenet"), resnet18[0])
    assert server.ranges == ["bytes=1000000-"]


def test_a_file_with_another_checksum_is_not_used(server, published, cache):
    server.content = server.content[:-1] + b"x"
    with pytest.raises(mr.WeightsError, match=r"the SHA-256 sum of .* what was downloaded is deleted"):
        models.resnet18(weights="imagenet")
    assert os.listdir(cache) == []
    (cache / published).write_bytes(b"<html>log in</html>")
    with pytest.raises(mr.WeightsError, match=r"this is a web page .* delete it to download it again"):
        models.resnet18(weights="imagenet")
    (cache / published).unlink()
    (cache / published).mkdir()
    with pytest.raises(mr.WeightsError, match="cannot be read"):
        models.resnet18(weights="imagenet")


@pytest.mark.parametrize("mode", ["missing", "no length"])
def test_a_server_that_does_not_have_it(server, published, cache, mode):
    server.mode = mode
    with pytest.raises(mr.WeightsError, match=f"{published} is not in {cache} and cannot be downloaded: "):
        models.resnet18(weights="imagenet")


def test_without_a_network_it_says_where_to_put_the_file(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(mr.WeightsError) as caught:
        pretrained.imagenet_file(101, address="http://127.0.0.1:1/")
    text = str(caught.value)
    assert "no connection" in text
    assert f"get http://127.0.0.1:1/resnet101-63fe2227.pth by other means and put it at {cache}/resnet101" in text
    assert "\n" not in text


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_names_of_torchvisions_files(depth):
    assert pretrained.ADDRESS == "https://download.pytorch.org/models/"
    assert len(bytes.fromhex(pretrained.IMAGENET[depth].removesuffix(".pth").removeprefix(f"resnet{depth}-"))) == 4


def test_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIRES_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.cache_directory() == tmp_path / "minires"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pretrained.cache_directory().parts[-2:] == (".cache", "minires")


def test_imagenet_classes():
    """The order of the outputs, checked against well-known numbers."""
    names = models.imagenet_classes()
    assert len(names) == 1000
    known = {0: "tench", 1: "goldfish", 65: "sea snake", 207: "golden retriever", 281: "tabby", 340: "zebra"}
    known |= {388: "giant panda", 407: "ambulance", 530: "digital clock", 817: "sports car", 949: "strawberry"}
    known |= {134: "crane bird", 517: "crane", 999: "toilet tissue"}
    assert {number: names[number] for number in known} == known
    assert len(set(names)) == 1000


def test_no_weights_are_drawn_for_a_network_that_is_loaded(resnet18, tmp_path):
    """Those that follow, for a new last layer, come from the seed as if nothing had been loaded."""
    (tmp_path / "x.pth").write_bytes(resnet18[1])
    mr.manual_seed(3)
    expected = nn.Linear(4, 5).weight.data
    for load in (lambda path: models.resnet18(weights=path), models.from_weights):
        mr.manual_seed(3)
        assert_equal(load(tmp_path / "x.pth"), resnet18[0])
        np.testing.assert_array_equal(nn.Linear(4, 5).weight.data, expected)


# Files of any origin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["plain", "compressible"])
def test_an_akamaster_checkpoint(tmp_path, capsys, version):
    """Its names: module. before all, linear for fc; from before there was num_batches_tracked."""
    trained = models.resnet20(generator=np.random.default_rng(7))
    theirs = {}
    for name, array in trained.state_dict().items():
        if "num_batches_tracked" not in name:
            theirs["module." + name.replace("fc.", "linear.")] = array
    if version == "compressible":
        theirs = {n.replace("conv", "compressible_conv").replace("lin", "compressible_lin"): theirs[n] for n in theirs}
    mr.save_weights(theirs, tmp_path / "resnet20-12fca82f.pth")
    ours = models.resnet20(weights=tmp_path / "resnet20-12fca82f.pth")
    assert_equal(ours, trained)
    said = capsys.readouterr().out
    assert "took 'module.'" in said
    assert "'linear' is called 'fc' here" in said
    assert_equal(models.build(20, weights=tmp_path / "resnet20-12fca82f.pth"), trained)
    assert_equal(models.from_weights(tmp_path / "resnet20-12fca82f.pth"), trained)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: models.resnet20(weights=path), "missing: bn1.weight"),
        (
            lambda path: models.resnet18(10, weights=path),
            r"It has 1000 classes, num_classes is 10: .*nn.Linear\(.*, 10\)",
        ),
        (lambda path: models.resnet18(stem="cifar", weights=path), "misshapen: conv1.weight"),
        (lambda path: models.resnet50(weights=path), "the state does not fit ResNet"),
        (lambda path: models.resnet20(weights="imagenet"), "there are none for ResNet-20, only for depths 18, 34, 50"),
    ],
)
def test_weights_that_do_not_fit(resnet18, tmp_path, make, message):
    (tmp_path / "x.pth").write_bytes(resnet18[1])
    if "missing" in message:
        mr.save_weights({"conv1.weight": np.ones((16, 3, 3, 3), np.float32)}, tmp_path / "x.pth")
    with pytest.raises(mr.WeightsError, match=message) as caught:
        make(tmp_path / "x.pth")
    assert len(str(caught.value)) < 800


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file of weights"):
        models.resnet18(weights=tmp_path / "x.pth")


OTHERS = pytest.mark.nightly("2 s; other depths are tried in any case")


# From weights to the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "stem", "classes", "shortcut"),
    [
        (18, "imagenet", 1000, True), (34, "cifar", 10, True), (50, "imagenet", 7, True),
        (18, "cifar", 3, False), (20, None, 10, True), (56, None, 100, True),
        pytest.param(101, "cifar", 10, True, marks=OTHERS), pytest.param(110, None, 10, True, marks=OTHERS),
    ],
)  # fmt: skip
def test_a_network_is_recognised_by_its_weights(depth, stem, classes, shortcut):
    model = models.build(depth, classes, stem, shortcut)
    found = models.from_state_dict(model.state_dict())
    assert recognise.depth_of(found) == depth
    assert_equal(found, model)


@pytest.mark.parametrize("plain", [True, False])
def test_a_plain_network_is_recognised_by_the_note_of_its_run(plain, tmp_path):
    """Its names and shapes are those of the residual one."""
    model = models.build(20, shortcut=not plain)
    mr.save_weights(model, tmp_path / "x.safetensors", {"minires": json.dumps({"settings": {"plain": plain}})})
    x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32))
    found = models.from_weights(tmp_path / "x.safetensors")
    with mr.no_grad():
        np.testing.assert_array_equal(found.eval()(x).numpy(), model.eval()(x).numpy())
        other = models.from_state_dict(model.state_dict(), shortcut=plain)
        assert not np.allclose(other.eval()(x).numpy(), model(x).numpy())


@pytest.mark.parametrize("note", ["{", "[]", '{"settings": 3}', '{"settings": {}}', '{"settings": {"plain": "yes"}}'])
def test_notes_that_say_nothing_of_it(note, tmp_path):
    mr.save_weights(models.resnet20(), tmp_path / "x.safetensors", {"minires": note})
    assert models.from_weights(tmp_path / "x.safetensors").layer1[0].shortcut


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"weight": np.ones(3)}, "not the weights of a ResNet: its names are like weight"),
        (lambda s: {}, r"its names are like \(none\)"),
        (lambda s: {n: a for n, a in s.items() if "layer3.2" not in n}, r"a ResNet with \(3, 3, 2\) blocks"),
        (lambda s: {n: a for n, a in s.items() if n != "bn1.bias"}, "missing: bn1.bias"),
        (lambda s: {**s, "layer4.0.conv1.weight": np.ones(3)}, r"with \(3, 3, 3, 1\) blocks of BasicBlock"),
    ],
)
def test_weights_of_other_networks(change, message, tmp_path):
    state = change(models.resnet20().state_dict())
    with pytest.raises(ValueError, match=message):
        models.from_state_dict(state)
    mr.save_weights(state, tmp_path / "x.npz")
    with pytest.raises(mr.WeightsError, match=f"x.npz: .*{message}"):
        models.from_weights(tmp_path / "x.npz")
