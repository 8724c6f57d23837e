"""examples/experiments/degradation.py: what it measures in a layer, and that a stopped experiment goes on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from examples.experiments import degradation
from minires import models
from minires.train import compare

SCRIPT = Path(degradation.__file__)
PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "degradation"


def command(shapes_dir, *arguments):
    """The experiment with networks of 20 layers, 2 steps an epoch, 2 epochs."""
    small = ("--data", "shapes", "--data-dir", shapes_dir, "--train-size", 256, "--test-size", 32, "--epochs", 2)
    return [*map(str, [sys.executable, SCRIPT, "--device", "cpu", "--depths", 20, *small, *arguments])]


@pytest.fixture
def run(run_here, tmp_path):
    """Run it to its end, in this process; as a finished process."""
    return lambda shapes_dir, *arguments: run_here(command(shapes_dir, *arguments), tmp_path)


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


def test_the_pictures_show_what_was_measured():
    pytest.importorskip("matplotlib")
    runs, layers = [], []
    for plain, test in ((True, (0.1, 0.2)), (False, (0.3, 0.4))):
        records = [{"epoch": i + 1, "step": 4 * i + 4, "test_accuracy": share} for i, share in enumerate(test)]
        runs.append(compare.Run(Path("x"), {"depth": 20, "plain": plain, "dataset": "D"}, records, {}))
        probes = [{"epoch": i, "gradient_norm": [1 + i, 3, 2], "response_std": [5 + i, 9, 7]} for i in range(3)]
        layers.append({"training_error": {"steps": 2, "percent": [80, 70, 60, 50 + plain]}, "probes": probes})

    plain, residual = degradation.training_error(runs, layers).axes
    np.testing.assert_allclose(plain.lines[0].get_xydata(), [(0.25, 80), (0.75, 70), (1.25, 60), (1.75, 51)])
    np.testing.assert_allclose(plain.lines[1].get_xydata(), [(1, 90), (2, 80)])
    np.testing.assert_allclose(residual.lines[1].get_xydata(), [(1, 70), (2, 60)])

    panels = degradation.gradient_norms(runs, layers).axes
    assert [axes.get_title() for axes in panels] == ["before training", "after 1 epoch", "after 2 epochs"]
    np.testing.assert_allclose([axes.lines[1].get_ydata() for axes in panels], [[1, 3, 2], [2, 3, 2], [3, 3, 2]])

    ordered, by_size = degradation.responses(runs, layers).axes
    np.testing.assert_allclose(ordered.lines[0].get_xydata(), [(1, 7), (2, 9), (3, 7)])  # after the last epoch
    np.testing.assert_allclose(by_size.lines[0].get_ydata(), [9, 7, 7])
    for axes in (*panels, ordered, by_size):
        assert [line.get_linestyle() for line in axes.lines] == ["--", "-"]  # plain, residual


def measured(path):
    """layers.json and log.jsonl, without the times."""
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    times = ("seconds", "images_per_second")
    log = [{name: value for name, value in line.items() if name not in times} for line in lines]
    return json.loads((path / "layers.json").read_text()), log


def test_an_epoch_is_trained_and_measured(run, shapes_dir, tmp_path):
    done = run(shapes_dir, "--network", "plain-20", "--epochs", 1, "--train-size", 64, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    layers, log = measured(tmp_path / "plain-20")
    assert [probe["epoch"] for probe in layers["probes"]] == [0, 1]
    np.testing.assert_allclose(layers["training_error"]["percent"], [100 * (1 - log[0]["accuracy"])])


@pytest.mark.nightly("30 s: trains four times; another test trains once")
def test_the_experiment_goes_on_where_it_was_stopped(pictures, run, shapes_dir, interrupt, tmp_path):
    only = ("--network", "plain-20")
    done = run(shapes_dir, *only, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("training.png", "gradients.png", "responses.png"):
        assert (tmp_path / "whole" / name).read_bytes().startswith(b"\x89PNG")
    layers, log = measured(tmp_path / "whole" / "plain-20")
    assert [probe["epoch"] for probe in layers["probes"]] == [0, 1, 2]
    curve = np.reshape(layers["training_error"]["percent"], (2, 2)).mean(axis=1)  # 2 steps an epoch, each a point
    np.testing.assert_allclose(curve, [100 * (1 - record["accuracy"]) for record in log])
    norms = [probe["gradient_norm"] for probe in layers["probes"]]
    assert norms[0] != norms[1] != norms[2]

    # Interrupted within the second epoch, and started again.
    parts = command(shapes_dir, *only, "--out", tmp_path / "parts")
    status, _, err = interrupt(parts, tmp_path, at="epoch 1/2: loss")
    assert status == 130, err
    assert "continue with: python" in err
    assert run(shapes_dir, *only, "--out", tmp_path / "parts").returncode == 0
    assert measured(tmp_path / "parts" / "plain-20") == (layers, log)

    # Killed after the last epoch was saved, before its layers were looked at.
    short = {**layers, "probes": layers["probes"][:2]}
    (tmp_path / "parts" / "plain-20" / "layers.json").write_text(json.dumps(short))
    (tmp_path / "parts" / "plain-20" / "results.json").unlink()
    assert run(shapes_dir, *only, "--out", tmp_path / "parts").returncode == 0
    assert measured(tmp_path / "parts" / "plain-20") == (layers, log)

    again = run(shapes_dir, *only, "--out", tmp_path / "parts")
    assert again.stdout.count("done before") == 1
    other = run(shapes_dir, *only, "--out", tmp_path / "parts", "--test-size", 16)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "its test_size is 32, this run's is 16" in other.stderr


def test_what_was_published_is_drawn_but_not_trained_on(pictures, run, shapes_dir, tmp_path):
    """Published folders lack the state."""
    shutil.copytree(PUBLISHED / "resnet-20", tmp_path / "resnet-20")
    drawn = run(shapes_dir, "--draw", tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    refused = run(shapes_dir, "--network", "resnet-20", "--epochs", 1, "--out", tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "holds a run without its state" in refused.stderr
    for name in ("training.png", "gradients.png", "responses.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for content in ("{}", "[]", "{", '{"layers": ["a"], "probes": [{"gradient_norm": [], "response_std": []}]}'):
        (tmp_path / "resnet-20" / "layers.json").write_text(content)
        refused = run(shapes_dir, "--draw", tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "layers.json: cannot be read" in refused.stderr


def test_bad_arguments(run, shapes_dir, tmp_path):
    for arguments, said in (
        (("--network", "plain-56"), "is none of plain-20, resnet-20"),
        (("--draw", tmp_path), "holds none of"),
        (("--train-size", 99999), "has 10000 training images"),
        (("--depths", "21"), "invalid choice"),
    ):
        refused = run(shapes_dir, *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert said in refused.stderr
