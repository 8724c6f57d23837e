from __future__ import annotations

import os

import numpy as np
import pytest

from minires import data
from minires.data.folders import mean_and_std
from minires.data.shapes import CLASSES, OUTLINES, SIZE, _place, _shape_mask, draw


def make(data_dir, **options):
    lines: list[str] = []
    d = data.shapes10(data_dir, log=lines.append, **{"train_size": 60, "test_size": 20, **options})
    return d, lines


@pytest.fixture(scope="module")
def drawn():
    """2,000 + 1,000 images and labels from two generators."""
    return draw(2000, np.random.default_rng([0, 0])), draw(1000, np.random.default_rng([0, 1]))


def test_drawn_once_then_read(tmp_path):
    d, first = make(tmp_path / "new")
    again, second = make(tmp_path / "new")
    assert "drawing" in first[0]
    assert second == []
    assert np.array_equal(d.train_images, again.train_images)
    assert np.array_equal(d.test_labels, again.test_labels)
    assert (d.name, d.num_classes, len(d.train_images), len(d.test_images)) == ("Shapes-10", 10, 60, 20)
    assert d.train_images.shape == (60, 32, 32, 3)
    assert len(os.listdir(tmp_path / "new")) == 1  # no temporary file left


def test_the_seed_decides(tmp_path):
    d, _ = make(tmp_path / "a")
    same, _ = make(tmp_path / "b")
    other, _ = make(tmp_path / "a", seed=1)
    assert np.array_equal(d.train_images, same.train_images)
    assert not np.array_equal(d.train_images, other.train_images)
    assert not np.array_equal(d.train_images[:20], d.test_images)


@pytest.mark.parametrize(
    "damage", ["truncated", "garbage", "empty", "flipped", "other arrays", "wrong labels", "objects"]
)
def test_a_damaged_cache_is_drawn_again(tmp_path, damage):
    d, _ = make(tmp_path)
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    if damage == "other arrays":
        np.savez(path, x=np.zeros(3))
    elif damage in ("wrong labels", "objects"):
        labels = np.full(60, 10) if damage == "wrong labels" else np.array([{}] * 60)
        arrays = {"train_images": d.train_images, "test_images": d.test_images, "test_labels": d.test_labels}
        np.savez(path, **arrays, train_labels=labels)
    else:
        half = len(raw) // 2
        bad = {
            "truncated": raw[:half],
            "garbage": b"garbage",
            "empty": b"",
            "flipped": raw[:half] + bytes([raw[half] ^ 1]) + raw[half + 1 :],
        }
        path.write_bytes(bad[damage])
    again, lines = make(tmp_path)
    assert "damaged" in lines[0]
    assert np.array_equal(d.train_images, again.train_images)
    assert np.array_equal(d.train_labels, again.train_labels)
    assert make(tmp_path)[1] == []  # and the cache is whole again


def test_a_data_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    d, lines = make(tmp_path / "file")
    assert len(d.train_images) == 60
    assert "cannot be kept" in lines[-1]


@pytest.mark.parametrize("option", [{"train_size": 0}, {"test_size": 0}, {"seed": -1}])
def test_sizes_and_seeds_out_of_range(tmp_path, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is {next(iter(option.values()))}, expected at least"):
        make(tmp_path, **option)


def test_classes_are_equally_frequent_and_shuffled(drawn):
    (images, labels), (_, test_labels) = drawn
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [200] * 10
    assert np.bincount(test_labels).tolist() == [100] * 10
    assert not np.array_equal(labels[:10], np.arange(10))


def test_statistics_are_exact(drawn):
    (images, _), _ = drawn
    mean, std = mean_and_std(images)
    pixels = images.reshape(-1, 3) / 255  # (N*H*W, 3)
    assert mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=0), rel=1e-9)


def test_no_two_images_are_equal(drawn):
    images = np.concatenate([drawn[0][0], drawn[1][0]])
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("name", CLASSES)
def test_an_outline_lies_in_its_circle_and_is_what_gets_filled(name):
    outline = OUTLINES[name]
    assert np.linalg.norm(outline, axis=1).max() <= 1.15
    # Shoelace formula: the area that the outline encloses (a ring's hole not counted), for comparison with the pixels.
    x, y = outline.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2

    class Fixed:  # a "generator" for: radius 10, centre (16, 16), angle 0, stretch 1
        def uniform(self, low, high, size=None):
            return {(9, 13): 10.0, (-0.35, 0.35): 0.0, (0.8, 1.25): 1.0}.get((low, high), np.array([16.0, 16.0]))

    mask = _shape_mask(outline, Fixed())
    assert mask.shape == (SIZE, SIZE)
    # Pillow counts the pixels on the border as inside: half a quarter pixel all around.
    border = np.linalg.norm(outline - np.roll(outline, -1, axis=0), axis=1).sum() * 10 / 8
    assert mask.sum() / 255 == pytest.approx(area * 100 + border, rel=0.04)


def test_place_keeps_the_area():
    rng = np.random.default_rng(0)
    corners = np.array(_place(OUTLINES["square"], np.array([16.0, 16.0]), 10.0, rng)) / 4  # in pixels
    x, y = corners.T
    assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == pytest.approx(1.6**2 * 100)


def test_a_linear_classifier_does_badly(drawn):
    """Softmax regression on the pixels, in plain NumPy. Shapes are bright: a pixel says something about the class."""
    (x, y), (x_test, y_test) = [
        (images.reshape(len(images), -1) / np.float32(128) - 1, labels) for images, labels in drawn
    ]
    weight = np.zeros((3072, 10), np.float32)
    rng = np.random.default_rng(0)
    for step in range(400):
        i = rng.integers(0, len(x), 100)
        logits = x[i] @ weight  # (100, 10)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(100), y[i]] -= 1
        weight -= 1e-3 * x[i].T @ p / (1 + step / 200)
    train = np.mean((x @ weight).argmax(axis=1) == y)
    test = np.mean((x_test @ weight).argmax(axis=1) == y_test)
    assert train > 0.25  # it does learn what it can: this set by heart
    assert test < 0.5
