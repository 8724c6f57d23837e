from __future__ import annotations

import numpy as np

from minires import kernels
from minires.data.augment import draw
from minires.device import module_of, to_device


def test_draws_cover_every_shift_and_both_flips():
    top, left, flip = draw(np.random.default_rng(0), 5000)
    assert top.shape == left.shape == flip.shape == (5000,)
    assert sorted(set(top.tolist())) == sorted(set(left.tolist())) == list(range(9))
    assert flip.dtype == bool
    assert 0.45 < flip.mean() < 0.55
    # Independent of each other: all 162 combinations occur.
    assert len(set(zip(top.tolist(), left.tolist(), flip.tolist()))) == 162


def test_crop_and_flip_against_one_image_at_a_time(device):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 7, 6, 3), dtype=np.uint8)
    top, left, flip = draw(rng, 40, padding=2)
    moved = [to_device(a, device) for a in (images, top, left, flip)]
    found = to_device(kernels.of(moved[0]).crop_and_flip(*moved, 2), "cpu")
    for i in range(40):
        padded = np.pad(images[i], ((2, 2), (2, 2), (0, 0)))
        expected = padded[top[i] : top[i] + 7, left[i] : left[i] + 6]
        if flip[i]:
            expected = expected[:, ::-1]
        assert np.array_equal(found[i], expected)


def test_no_shift_and_no_flip_is_the_image(device):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    x = to_device(images, device)
    xp = module_of(x)
    found = kernels.of(x).crop_and_flip(x, xp.full(3, 4), xp.full(3, 4), xp.zeros(3, bool), 4)
    assert np.array_equal(to_device(found, "cpu"), images)


def test_normalize(device):
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = np.array([0.1, 0.5, 0.9], np.float32), np.array([0.2, 0.3, 0.4], np.float32)
    x, m, s = (to_device(a, device) for a in (images, mean, std))
    found = to_device(kernels.of(x).normalize(x, m, s), "cpu")
    assert found.dtype == np.float32
    expected = (images.astype(np.float64) / 255 - [0.1, 0.5, 0.9]) / [0.2, 0.3, 0.4]
    assert np.allclose(found, expected, atol=1e-5)
