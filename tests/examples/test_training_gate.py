"""The training gate: a network has to learn. A minute of ResNet-20 on Shapes-10, from the command line to results.json.

Gradients that are right, a loop that runs, and still nothing is learned: such faults (batch norm's running statistics,
a schedule that ends too early, labels that part from their images) show here and in no property test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "train_cifar.py"
ACCURACY = 0.60  # 0.10 is chance; seeds 0, 1, 2 give 0.78, 0.72 and 0.78


@pytest.mark.nightly("a minute of ResNet-20; test_train_minimal.py has a network that learns in 3 s")
def test_resnet20_learns_shapes(tmp_path):
    command = [
        sys.executable, SCRIPT, "--depth", 20, "--data", "shapes", "--data-dir", tmp_path, "--epochs", 2,
        "--batch-size", 64, "--augmentation", "none", "--device", "cpu", "--out", tmp_path / "run",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_images"] == 2000
    assert results["test_accuracy"] >= ACCURACY, done.stdout
