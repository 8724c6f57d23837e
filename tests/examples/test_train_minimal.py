"""The page with the whole of training: short, and it trains."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np

from minires import data

PAGE = Path(__file__).parents[2] / "examples" / "train_minimal.py"


def test_it_is_one_page():
    assert len(PAGE.read_text().splitlines()) <= 45


def test_it_learns_which_half_of_a_picture_is_bright(monkeypatch, capsys):
    rng = np.random.default_rng(0)

    def draw(n):
        labels = rng.integers(0, 2, n)
        images = rng.integers(0, 100, (n, 8, 8, 3), np.uint8)
        images[labels == 0, :4] += 100
        images[labels == 1, 4:] += 100
        return images, labels

    classes, third = ("above", "below"), (0.3, 0.3, 0.3)
    dataset = data.Dataset("Halves", *draw(1280), *draw(100), classes, third, third)
    monkeypatch.setattr(data, "load", lambda name: dataset)
    runpy.run_path(str(PAGE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    accuracies = [float(re.search(r"test accuracy ([\d.]+) % \(Halves\)$", line)[1]) for line in lines]
    assert len(accuracies) == 5
    assert accuracies[-1] > 90
