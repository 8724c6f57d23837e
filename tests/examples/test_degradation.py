"""examples/degradation.py: what it measures in a layer, and that a stopped experiment goes on."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import data, models

SCRIPT = Path(__file__).parents[2] / "examples" / "degradation.py"
sys.path.insert(0, str(SCRIPT.parent))
degradation = importlib.import_module("degradation")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder in which Shapes-10 has been drawn."""
    path = tmp_path_factory.mktemp("data")
    data.shapes10(path)
    return path


def run(data_dir, *arguments):
    """Two networks of 20 layers, 2 steps an epoch, 2 epochs."""
    small = ("--data", "shapes", "--data-dir", data_dir, "--train-size", 256, "--test-size", 32, "--epochs", 2)
    command = [sys.executable, SCRIPT, "--device", "cpu", "--depths", 20, *small, *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("shortcut", [True, False])
def test_a_layer_is_measured_as_the_docstring_says(shortcut):
    model = models.resnet20(shortcut=shortcut, generator=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _, _, norm in degradation.convolutions(model):  # as after some training
        norm.weight.data[...] = rng.uniform(0.5, 2, norm.weight.shape)
        norm.bias.data[...] = rng.uniform(-1, 1, norm.bias.shape)
    images, labels = rng.standard_normal((8, 32, 32, 3)).astype(np.float32), np.arange(8)
    found = degradation.probe(model, images, labels)
    assert len(found["gradient_norm"]) == len(found["response_std"]) == 19

    # The variance of a batch-normalised response: weight² within a channel, and that of the biases between channels.
    for value, (_, _, norm) in zip(found["response_std"], degradation.convolutions(model)):
        expected = np.sqrt((norm.weight.data**2).mean() + norm.bias.data.var())
        assert abs(value / expected - 1) < 1e-3
    model.zero_grad()
    F.cross_entropy(model(mr.Tensor(images)), labels).backward()
    for value, (_, conv, _) in zip(found["gradient_norm"], degradation.convolutions(model)):
        assert abs(value / np.linalg.norm(conv.weight.grad) - 1) < 1e-3


def test_the_layers_are_in_their_order():
    names = [name for name, _, _ in degradation.convolutions(models.resnet20())]
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert names[-1] == "layer3.2.conv2"


def test_the_experiment_goes_on_where_it_was_stopped(data_dir, tmp_path):
    done = run(data_dir, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    for name in ("training.png", "gradients.png", "responses.png"):
        assert (tmp_path / "whole" / name).read_bytes().startswith(b"\x89PNG")
    plain = tmp_path / "whole" / "plain-20"
    layers = json.loads((plain / "layers.json").read_text())
    assert [probe["epoch"] for probe in layers["probes"]] == [0, 1, 2]
    assert len(layers["training_error"]["percent"]) == 4

    # A run that was killed after its first epoch has no results, and what came later is not there.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("state.safetensors", "results.json", "layers.json"):
        (tmp_path / "killed" / "plain-20" / name).unlink()
    refused = run(data_dir, "--out", tmp_path / "killed")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "holds a run without its state" in refused.stderr

    drawn = run(data_dir, "--draw", tmp_path / "killed")
    assert drawn.returncode == 0, drawn.stderr
    assert "plain-20" not in drawn.stdout
    again = run(data_dir, "--out", tmp_path / "whole")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 2


def test_bad_arguments(data_dir, tmp_path):
    for arguments, said in (
        (("--network", "plain-56"), "is none of plain-20, resnet-20"),
        (("--draw", tmp_path), "holds none of"),
        (("--depths", "21"), "invalid choice"),
    ):
        refused = run(data_dir, *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr
