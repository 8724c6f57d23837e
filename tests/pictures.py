"""Folders of small pictures, for the tests of training on one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def picture(colour: tuple[int, int, int], size: tuple[int, int], seed: int) -> Image.Image:
    """Noise around a colour, (width, height) = size."""
    rng = np.random.default_rng(seed)
    pixels = np.array(colour) + rng.integers(-40, 41, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folder(path: Path, counts: dict[str, int], kind: str = "png") -> Path:
    """`path` with a sub-folder of pictures for each class; the sizes of the pictures differ."""
    for label, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True)
        for number in range(count):
            size = (16 + number % 7, 20 - number % 5)
            colour = COLOURS.get(name, (80 * label % 256, 120, 200))
            picture(colour, size, 100 * label + number).save(path / name / f"{number:03}.{kind}")
    return path
