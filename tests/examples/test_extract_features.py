"""Features of a folder, the images that are alike, and a picture of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minires as mr
from minires import models
from minires.cli.predict import Preparation

SCRIPT = Path(__file__).parents[2] / "examples" / "extract_features.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, and images of three colours: red-0 ... red-3, green-0 ..., which any network can tell apart."""
    path = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    (path / "images").mkdir()
    for colour, rgb in {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}.items():
        for i in range(4):
            pixels = np.array(rgb) + rng.integers(-20, 21, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / "images" / f"{colour}-{i}.png")
    mr.save_weights(models.resnet20(generator=np.random.default_rng(0)), path / "x.pth")
    return path


@pytest.fixture
def run(run_here, folder):
    command = [sys.executable, SCRIPT, "--weights", "x.pth", "--device", "cpu"]
    return lambda *arguments: run_here([*command, *arguments], folder)


def test_features_are_the_models(folder, tmp_path):
    """By a process of its own, in another folder than the program's."""
    options = ["--weights", "x.pth", "--device", "cpu", "--out", tmp_path / "f.npz", "--batch-size", "5"]
    command = [sys.executable, SCRIPT, "images", *options]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "features of 12 images, 64 numbers each" in process.stdout
    with np.load(tmp_path / "f.npz") as archive:
        files, features, network = archive["files"].tolist(), archive["features"], str(archive["network"])
    assert network == "ResNet-20 x.pth"
    assert files == sorted(f"images/{path.name}" for path in (folder / "images").iterdir())
    model = models.from_weights(folder / "x.pth").eval()
    preparation = Preparation(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in files])
    with mr.no_grad():
        expected = model.features(mr.Tensor(preparation.normalise(pixels)))["c4"].numpy().mean(axis=(1, 2))
    assert np.linalg.norm(features - expected) < 1e-4 * np.linalg.norm(expected)


def test_neighbours_have_the_same_colour_and_are_drawn(run, tmp_path):
    process = run("images", "--query", "images/red-2.png", "images/blue-0.png", "--neighbours", 3,
                  "--picture", tmp_path / "p.png")  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "images/red-2.png"
    assert sorted(line.split()[1] for line in lines[1:4]) == [f"images/red-{i}.png" for i in (0, 1, 3)]
    assert sorted(line.split()[1] for line in lines[5:8]) == [f"images/blue-{i}.png" for i in (1, 2, 3)]
    similarities = [float(line.split()[0]) for line in lines[1:4]]
    assert similarities == sorted(similarities, reverse=True)
    assert max(similarities) <= 1.0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 400
        colours = np.unique(np.asarray(picture.convert("RGB").resize((60, 60))).reshape(-1, 3), axis=0)  # (60,60,3)
        assert len(colours) > 20  # not an empty page


def test_features_of_an_earlier_run(run, tmp_path):
    assert run("images", "--out", tmp_path / "f.npz").returncode == 0
    process = run("--features", tmp_path / "f.npz", "--query", "images/green-1.png", "--neighbours", 1)
    assert process.returncode == 0, process.stderr
    assert "images/green-" in process.stdout.splitlines()[1]


def test_what_is_no_image_is_named_and_skipped(run, tmp_path):
    (tmp_path / "no.png").write_text("no")
    process = run("images", tmp_path, "--out", tmp_path / "f.npz")
    assert process.returncode == 1
    assert "no.png: cannot be read (not an image)" in process.stderr
    assert "features of 12 images" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "give images or folders, or --features"),
        ("images --weights nowhere --out f", "nowhere: there is no such file"),
        ("x.pth --out f", "there is no image among x.pth"),
        ("images", "say what to do with the features: --out, --query or --picture"),
        ("images --picture p.xyz", "'p.xyz' does not end in .png, .jpg"),
        ("--features nowhere.npz --query images", "nowhere.npz"),
        ("--features x.pth --query images", "does not hold files and features"),
        ("--features other.npz --query images", "they have 7 numbers, this network 64"),
    ],
)
def test_bad_arguments(run, folder, arguments, said):
    np.savez(folder / "other.npz", files=np.array(["a"]), features=np.ones((1, 7), np.float32))
    process = run(*arguments.split())
    assert process.returncode == 2
    assert said in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
