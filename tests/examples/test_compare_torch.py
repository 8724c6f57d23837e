"""examples/compare_torch.py: the two libraries take the same steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minires import data

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "compare_torch.py"
PUBLISHED = ROOT / "docs" / "results" / "pytorch" / "resnet101-sgd"


@pytest.mark.torch
@pytest.mark.parametrize(
    "network",
    ["--depth 20 --optimizer sgd", "--depth 20 --optimizer adam", "--depth 50 --stem imagenet --zero-init-last"],
)
def test_the_losses_agree(tmp_path, network):
    data.shapes10(tmp_path)
    command = [
        sys.executable, SCRIPT, "--data", "shapes", "--data-dir", tmp_path, "--train-size", 48, "--batch-size", 16,
        "--test-size", 32, "--epochs", 1, "--lr", 1e-3, *network.split(), "--out", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "losses.json").read_text())
    losses = record["losses"]
    assert [len(values) for values in losses.values()] == [3, 3, 3]
    assert losses["minires"] == pytest.approx(losses["PyTorch"], abs=1e-3)
    assert losses["minires"][0] == pytest.approx(losses["PyTorch"][0], abs=1e-5)
    assert max(losses["minires"]) - min(losses["minires"]) > 5e-3  # there is something to agree on
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")


def run(*options):
    return subprocess.run([sys.executable, *map(str, (SCRIPT, *options))], capture_output=True, text=True, timeout=60)


def test_a_stem_that_the_network_does_not_have(tmp_path):
    done = run("--stem", "imagenet", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "argument --stem: ResNet-20 has a stem of its own" in done.stderr


def test_the_picture_is_drawn_again_without_pytorch(tmp_path):
    shutil.copy(PUBLISHED / "losses.json", tmp_path)
    done = run("--draw", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "minires and PyTorch: losses at most 0.0001 apart for 5 steps" in done.stdout
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change", [{"command": None}, {"command": 5}, {"lr": "high"}, {"losses": {}}, {"dataset": None}]
)
def test_a_record_that_is_broken(tmp_path, change):
    record = {**json.loads((PUBLISHED / "losses.json").read_text()), **change}
    record = {name: value for name, value in record.items() if value is not None}
    (tmp_path / "losses.json").write_text(json.dumps(record))
    done = run("--draw", tmp_path)
    assert done.returncode == 2
    assert "losses.json: not a comparison (" in done.stderr
    assert done.stderr.count("\n") == 1
