"""examples/experiments/compare_torch.py: the two libraries take the same steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.experiments import compare_torch

ROOT = Path(__file__).parents[2]
SCRIPT = Path(compare_torch.__file__)
PUBLISHED = ROOT / "docs" / "results" / "pytorch" / "resnet101-sgd"


def run(*options):
    return subprocess.run([sys.executable, *map(str, (SCRIPT, *options))], capture_output=True, text=True, timeout=300)


@pytest.fixture
def three_steps(pictures, shapes_dir):
    """A function that trains for three steps, with further options; the process."""
    return lambda *options: run(
        "--data", "shapes", "--data-dir", shapes_dir, "--train-size", 48, "--test-size", 32, "--batch-size", 16,
        "--epochs", 1, *options,
    )  # fmt: skip


def losses(folder):
    return json.loads((folder / "losses.json").read_text())["losses"]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("network", "lr"),
    [
        ("--depth 20 --optimizer sgd", 1e-2),
        ("--depth 20 --optimizer adam", 1e-3),
        ("--depth 50 --stem imagenet --zero-init-last", 1e-2),
    ],
)
def test_the_losses_agree(three_steps, tmp_path, network, lr):
    """And differ from those of a network that does not learn by the same amounts, which the optimiser decides."""
    for folder, rate in (("out", lr), ("still", 1e-12)):
        done = three_steps(*network.split(), "--lr", rate, "--out", tmp_path / folder)
        assert done.returncode == 0, done.stderr
    learned, still = losses(tmp_path / "out"), losses(tmp_path / "still")
    assert [len(values) for values in learned.values()] == [3, 3, 3]
    assert learned["minires"][0] == pytest.approx(learned["PyTorch"][0], abs=1e-5)
    for step in (1, 2):
        moved = [learned[library][step] - still[library][step] for library in ("minires", "PyTorch")]
        assert abs(moved[1]) > 5e-3
        assert moved[0] == pytest.approx(moved[1], rel=0.02)  # without momentum it is half of it
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.torch
def test_a_training_that_diverges(three_steps, tmp_path):
    """The error names all three losses; the steps before remain, and can be drawn."""
    done = three_steps("--lr", 1e30, "--out", tmp_path / "out")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "error: a loss is not finite: step 2: minires nan, PyTorch nan, PyTorch, nudged nan" in last
    assert [len(values) for values in losses(tmp_path / "out").values()] == [1, 1, 1]
    assert run("--draw", tmp_path / "out").returncode == 0


@pytest.mark.torch
def test_a_folder_that_holds_a_comparison(three_steps, tmp_path):
    (tmp_path / "losses.json").write_text("{}")
    done = three_steps("--out", tmp_path)
    assert done.returncode == 2
    assert f"argument --out: {tmp_path} holds a comparison already" in done.stderr
    assert (tmp_path / "losses.json").read_text() == "{}"


def test_the_nudge_moves_every_number_to_the_next():
    before = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    after = compare_torch.nudge(before, np.random.default_rng(0))
    assert after.dtype == np.float32
    assert set(after.view(np.int32).ravel() - before.view(np.int32).ravel()) == {-1, 1}


def test_a_stem_that_the_network_does_not_have(tmp_path):
    done = run("--stem", "imagenet", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "argument --stem: ResNet-20 has a stem of its own" in done.stderr


def test_the_picture_is_drawn_again_without_pytorch(pictures, tmp_path):
    shutil.copy(PUBLISHED / "losses.json", tmp_path)
    done = run("--draw", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "minires and PyTorch: losses at most 0.0001 apart for 5 steps" in done.stdout
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def for_all(*values):
    return dict(zip(compare_torch.LIBRARIES, values))


@pytest.mark.parametrize(
    "change",
    [
        {"command": None}, {"command": 5}, {"lr": "high"}, {"losses": {}}, {"dataset": None}, {"test_accuracy": {}},
        {"losses": for_all([], [], [])}, {"losses": for_all([2.3], [2.3, 2.2], [2.3])},
        {"losses": for_all(["a"], ["b"], ["c"])}, {"test_accuracy": for_all(["x"], [0.1], [0.1])},
    ],
)  # fmt: skip
def test_a_record_that_is_broken(run_here, tmp_path, change):
    record = {**json.loads((PUBLISHED / "losses.json").read_text()), **change}
    record = {name: value for name, value in record.items() if value is not None}
    (tmp_path / "losses.json").write_text(json.dumps(record))
    done = run_here([sys.executable, SCRIPT, "--draw", tmp_path], tmp_path)
    assert done.returncode == 2
    assert "losses.json: not a comparison (" in done.stderr
    assert done.stderr.count("\n") == 1
