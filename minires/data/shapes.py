"""Shapes-10: ten classes of 32x32 colour images, drawn here, without a download.

One bright shape per image, of any colour, on a dark ground: any place, 18 to 26 pixels across, rotated by up to 20
degrees, stretched, striped, with clutter, and noise over everything. Shapes-10 stands in for CIFAR-10 where there is no
network, for a first run that learns in one pass over the images. A linear classifier on the pixels learns less than
half of them (44 %). Accuracies on Shapes-10 mean nothing elsewhere.

Reading order: when there is no CIFAR-10.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from minires.data.dataset import Dataset
from minires.data.folders import mean_and_std

SIZE = 32
SCALE = 4  # outlines are drawn on a canvas 4 times as wide and averaged down: soft edges
VERSION = 2  # of the drawing: raise it when the pictures change, to invalidate old caches


def _arc(start: float, stop: float, radius: float = 1.0, centre: float = 0.0) -> np.ndarray:
    """Points (40, 2) on a circle around (centre, 0), from one angle to another."""
    angle = np.linspace(start, stop, 40)
    return np.stack([centre + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _star() -> np.ndarray:
    angle = np.arange(10) * (np.pi / 5)
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)  # tips and notches in turn
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 17


def _cross() -> np.ndarray:
    a, b = 0.3, 0.95  # half the width of an arm, half its length
    corner = np.array([[a, a], [a, b], [-a, b], [-a, a]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # by 90 degrees
    return np.concatenate([corner @ np.linalg.matrix_power(turn, k) for k in range(4)])


# One closed outline per class, points (P, 2), about as large as the unit circle. The outline of the ring goes around
# the outside, then back around the hole. The crescent's two arcs, of radius 1 around 0 and 0.75 around 0.5, meet at
# (0.6875, +-0.7262).
OUTLINES = {
    "circle": _arc(0, 2 * np.pi),
    "ring": np.concatenate([_arc(0, 2 * np.pi), _arc(2 * np.pi, 0, 0.55)]),
    "crescent": np.concatenate([_arc(0.8128, 2 * np.pi - 0.8128), _arc(2 * np.pi - 1.3181, 1.3181, 0.75, 0.5)]),
    "semicircle": _arc(-np.pi / 2, np.pi / 2) - [0.4, 0.0],
    "triangle": _arc(0, 2 * np.pi)[[0, 13, 26]],
    "square": np.array([[0.8, 0.8], [-0.8, 0.8], [-0.8, -0.8], [0.8, -0.8]]),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "arrow": np.array([[1, 0], [0.1, 0.8], [0.1, 0.3], [-1, 0.3], [-1, -0.3], [0.1, -0.3], [0.1, -0.8]]),
}
CLASSES = tuple(OUTLINES)


def shapes10(
    data_dir: str | Path = "data",
    seed: int = 0,
    train_size: int = 10_000,
    test_size: int = 2_000,
    log: Callable[[str], None] = print,
) -> Dataset:
    """Shapes-10: uint8 images (N, 32, 32, 3) of ten shapes, the classes equally frequent.

    Draws the images from `seed` in a few seconds and keeps them in `data_dir`. The same versions of NumPy and Pillow
    draw the same images. A damaged file is drawn again; a directory that cannot be written to stays empty; `log` gets a
    message for both. Raises `ValueError` for a size below 1 or a negative seed.
    """
    for name, value, least in (("train_size", train_size, 1), ("test_size", test_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"shapes10: {name} is {value}, expected at least {least}")
    path = Path(data_dir) / f"shapes10-v{VERSION}-seed{seed}-{train_size}-{test_size}.npz"
    sizes = {"train": train_size, "test": test_size}
    arrays = _read(path, sizes, log)
    if arrays is None:
        log(f"drawing Shapes-10 ({train_size:,} training and {test_size:,} test images)")
        arrays = {}
        for split, (part, size) in enumerate(sizes.items()):
            arrays[f"{part}_images"], arrays[f"{part}_labels"] = draw(size, np.random.default_rng([seed, split]))
        _write(path, arrays, log)
    mean, std = mean_and_std(arrays["train_images"])
    return Dataset("Shapes-10", classes=CLASSES, mean=mean, std=std, **arrays)


def _read(path: Path, sizes: dict[str, int], log: Callable[[str], None]) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {f"{part}_{kind}": file[f"{part}_{kind}"] for part in sizes for kind in ("images", "labels")}
        for part, n in sizes.items():
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
            if images.shape != (n, SIZE, SIZE, 3) or images.dtype != np.uint8:
                raise ValueError(f"{part} images are {images.dtype} {images.shape}")
            if labels.shape != (n,) or labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= len(CLASSES):
                raise ValueError(f"{part} labels are wrong")
        return arrays
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        log(f"{path}: damaged ({error}); drawing it again")
        return None


def _write(path: Path, arrays: dict[str, Any], log: Callable[[str], None]) -> None:
    temporary = None  # with a name of its own: several runs may draw at the same time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **arrays)
        temporary.chmod(0o644)  # NamedTemporaryFile makes it private
        os.replace(temporary, path)
    except OSError as error:
        log(f"{path}: cannot be kept ({error.strerror or error}); it will be drawn again next time")
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`n` images, uint8 (n, 32, 32, 3), and their labels, int64 (n,)."""
    labels = rng.permutation(np.arange(n) % len(CLASSES))
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for start in range(0, n, 500):  # 500 images at a time keep the float arrays in the tens of megabytes
        chunk = labels[start : start + 500]
        shape = np.stack([_shape_mask(OUTLINES[CLASSES[label]], rng) for label in chunk])  # (n, 32, 32), 0..255
        clutter = np.stack([_clutter_mask(rng) for _ in chunk])
        images[start : start + 500] = _paint(shape / np.float32(255), clutter / np.float32(255), rng)
    return images, labels


def _place(outline: np.ndarray, centre: np.ndarray, radius: float, rng: np.random.Generator) -> list[tuple]:
    """`outline` (P, 2) stretched, rotated and moved to the canvas: P corners for Pillow."""
    angle, stretch = rng.uniform(-0.35, 0.35), rng.uniform(0.8, 1.25)  # 0.35 rad is 20 degrees
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = (outline * [radius * np.sqrt(stretch), radius / np.sqrt(stretch)]) @ turn + centre
    return list(map(tuple, (corners * SCALE).tolist()))


def _shape_mask(outline: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (32, 32): 255 inside the shape, 0 outside, values between at the edge."""
    canvas = Image.new("L", (SIZE * SCALE, SIZE * SCALE))
    radius = rng.uniform(9, 13)  # pixels of the finished image
    centre = rng.uniform(0.85 * radius, SIZE - 0.85 * radius, 2)  # at most a corner is cut off
    ImageDraw.Draw(canvas).polygon(_place(outline, centre, radius, rng), fill=255)
    return np.asarray(canvas.reduce(SCALE))


def _clutter_mask(rng: np.random.Generator) -> np.ndarray:
    """uint8 (32, 32): at most a line and a small piece of an arbitrary shape, without a class."""
    canvas = Image.new("L", (SIZE * SCALE, SIZE * SCALE))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 2)):
        pen.line(rng.uniform(0, SIZE * SCALE, 4).tolist(), fill=255, width=int(rng.integers(3, 9)))
    for _ in range(rng.integers(0, 2)):
        outline = OUTLINES[CLASSES[rng.integers(len(CLASSES))]]
        pen.polygon(_place(outline, rng.uniform(0, SIZE, 2), rng.uniform(1.5, 3), rng), fill=255)
    return np.asarray(canvas.reduce(SCALE))


def _paint(shape: np.ndarray, clutter: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours for masks (n, 32, 32) in 0..1: clutter over background, the shape over both, noise over all."""
    n = len(shape)
    # A shape brighter than its ground is what makes the set easy: ResNet-101 reaches 23 % in one pass otherwise.
    background = rng.uniform(20, 100, (n, 1, 1, 3)).astype(np.float32)
    foreground = rng.uniform(120, 235, (n, 1, 1, 3)).astype(np.float32)
    picture = background + _stripes(n, 15, rng)  # (n, 1, 1, 3) + (n, 32, 32, 3)
    other = rng.uniform(20, 235, (n, 1, 1, 3)).astype(np.float32)
    picture += clutter[..., None] * (other - picture)
    picture += shape[..., None] * (foreground + _stripes(n, 15, rng) - picture)
    picture += rng.normal(0, 6, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _stripes(n: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """float32 (n, 32, 32, 3): waves of any direction and colour, from a gradient over the image to 5-pixel stripes."""
    angle, frequency, phase = (
        rng.uniform(0, 1, (3, n, 1, 1)) * np.array([2 * np.pi, 40, 2 * np.pi])[:, None, None, None]
    )
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)[..., None]  # (n, 32, 32, 1)
    return (wave * rng.uniform(-strength, strength, (n, 1, 1, 3))).astype(np.float32)
