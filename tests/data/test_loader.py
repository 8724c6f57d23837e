from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.data import Loader
from minires.data.augment import draw
from minires.data.loader import CROPS
from minires.device import device_of, to_device

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def numbered(n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` images of 8x8 random pixels whose labels are their numbers."""
    return np.random.default_rng(n).integers(1, 256, (n, 8, 8, 3), dtype=np.uint8), np.arange(n)


def loader(n: int = 23, batch_size: int = 5, train: bool = True, **options) -> Loader:
    return Loader(*numbered(n), batch_size, mean=MEAN, std=STD, train=train, **options)


def collect(batches) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(to_device(x, "cpu"), to_device(y, "cpu")) for x, y in batches]


def same(a, b) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, u) and np.array_equal(y, v) for (x, y), (u, v) in zip(a, b))


def normalized(images: np.ndarray) -> np.ndarray:
    return (images / np.float32(255) - np.float32(MEAN)) / np.float32(STD)


def test_evaluation_batches_are_all_images_in_order(device):
    images, labels = numbered(23)
    batches = list(loader(train=False, device=device).epoch(0))
    assert all(device_of(x) == device_of(y) == device for x, y in batches)
    batches = collect(batches)
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    x, y = (np.concatenate(arrays) for arrays in zip(*batches))
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert y.dtype == np.int64
    assert np.array_equal(y, labels)
    assert np.allclose(x, normalized(images), atol=1e-6)


def test_training_batches_against_one_image_at_a_time(device):
    images, _ = numbered(23)
    for index, (x, y) in enumerate(collect(loader(seed=3, device=device).epoch(2))):
        top, left, flip = draw(np.random.default_rng([3, CROPS, 2, index]), 5)
        for i in range(5):
            image = np.pad(images[y[i]], ((4, 4), (4, 4), (0, 0)))[top[i] : top[i] + 8, left[i] : left[i] + 8]
            image = image[:, ::-1] if flip[i] else image
            assert np.allclose(x[i], normalized(image), atol=1e-6)


@given(
    n=st.integers(1, 40), batch_size=st.integers(1, 45), train=st.booleans(), seed=st.integers(0, 2**40), data=st.data()
)
def test_every_batch_is_a_pure_function_of_seed_epoch_and_index(n, batch_size, train, seed, data):
    first, second = (loader(n, batch_size, train, seed=seed) for _ in range(2))
    epoch = data.draw(st.integers(0, 1000))
    batches = collect(first.epoch(epoch))
    assert len(batches) == len(first)
    # Any order of asking, other epochs in between, part of an epoch: the same batches.
    index = data.draw(st.integers(0, len(first) - 1))
    collect(second.epoch(epoch + 1))
    assert same(collect([second.batch(epoch, index)]), batches[index : index + 1])
    assert same(collect(second.epoch(epoch, start=index)), batches[index:])
    assert collect(second.epoch(epoch, start=len(first))) == []
    # What an epoch consists of: everything once, or all but the rest of at most batch_size - 1.
    seen = np.concatenate([y for _, y in batches]).tolist()
    assert len(seen) == len(set(seen))
    assert len(seen) == (n // batch_size * batch_size if train and n >= batch_size else n)


def test_nothing_is_left_after_the_last_batch():
    """A run may be resumed just after the last batch of an epoch."""
    assert list(loader(16, 4, train=True).epoch(0, start=4)) == []


def test_epochs_and_seeds_differ():
    orders = [
        np.concatenate([y for _, y in loader(200, 10, seed=seed).epoch(epoch)]).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 2)]
    ]
    for i, a in enumerate(orders):
        assert sorted(a) == list(range(200))
        for b in orders[i + 1 :]:
            assert sum(u == v for u, v in zip(a, b)) < 20  # 1 is expected by chance


def test_the_crops_of_batches_differ():
    same_image = np.random.default_rng(0).integers(1, 256, (1, 8, 8, 3), dtype=np.uint8).repeat(100, axis=0)
    batches = Loader(same_image, np.zeros(100, np.int64), 50, mean=MEAN, std=STD, train=True)
    images = {i.tobytes() for epoch in (0, 1) for x, _ in batches.epoch(epoch) for i in x}
    assert 80 < len(images) <= 162  # 200 draws from 162 versions give 115 different ones on average


def test_both_devices_give_the_same_batches(device):
    for a, b in zip(collect(loader(device=device).epoch(1)), collect(loader().epoch(1))):
        assert np.array_equal(a[1], b[1])
        assert np.allclose(a[0], b[0], atol=1e-6)


def test_augmentation_can_be_switched_either_way():
    images, _ = numbered(23)
    for x, y in loader(augment=False).epoch(0):
        assert np.allclose(x, normalized(images[y]), atol=1e-6)
    plain, augmented = (collect(loader(train=False, augment=a).epoch(0)) for a in (False, True))
    assert [y.tolist() for _, y in plain] == [y.tolist() for _, y in augmented]
    assert not same(plain, augmented)


def test_without_padding_images_are_mirrored_and_nothing_else(device):
    images, _ = numbered(23)
    mirrored = 0
    for x, y in collect(loader(padding=0, device=device).epoch(0)):
        for i in range(5):
            flipped = np.allclose(x[i], normalized(images[y[i], :, ::-1]), atol=1e-6)
            assert flipped or np.allclose(x[i], normalized(images[y[i]]), atol=1e-6)
            mirrored += flipped
    assert 5 <= mirrored <= 15  # of 20
    with pytest.raises(ValueError, match="padding: -1, expected at least 0"):
        loader(padding=-1)


def test_resizing(device):
    x, _ = next(iter(loader(train=False, image_size=16, device=device).epoch(0)))
    assert device_of(x) == device
    assert x.shape == (5, 16, 16, 3)
    means = to_device(x, "cpu").mean(axis=(1, 2, 3))
    images, _ = numbered(23)
    assert np.allclose(means, normalized(images[:5]).mean(axis=(1, 2, 3)), atol=0.2)
    native, resized = (collect(loader(image_size=size).epoch(0)) for size in (None, 8))
    assert same(native, resized)
    assert [v.tolist() for _, v in loader(image_size=16).epoch(0)] == [v.tolist() for _, v in native]


def test_the_images_given_are_not_changed():
    images, labels = numbered(23)
    before = images.copy()
    images.flags.writeable = labels.flags.writeable = False
    list(Loader(images, labels, 5, mean=MEAN, std=STD, train=True).epoch(0))
    assert np.array_equal(images, before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0, expected at least 1"),
        ({"batch_size": -3}, "batch_size: -3"),
        ({"seed": -1}, "seed: -1"),
        ({"image_size": 0}, "image_size: 0"),
        ({"images": np.zeros((23, 3, 8, 8), np.uint8)}, "channels last"),
        ({"images": np.zeros((23, 8, 8, 3), np.float32)}, "images: float32"),
        ({"images": np.zeros((23, 8, 8), np.uint8)}, "images: uint8"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "N >= 1"),
        ({"labels": np.zeros(22, np.int64)}, r"labels: int64 \(22,\), expected integers \(23,\)"),
        ({"labels": np.zeros(23)}, "labels: float64"),
        ({"std": (0.2, 0.0, 0.2)}, "std .* expected 0 <= mean <= 1 and std > 0"),
        ({"std": (0.2, 0.2)}, r"mean \(0.4, 0.5, 0.6\) and std \(0.2, 0.2\), expected one of each per channel"),
        ({"device": "tpu"}, "device: 'tpu'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changed, message):
    images, labels = numbered(23)
    arguments = {"images": images, "labels": labels, "batch_size": 5, "mean": MEAN, "std": STD, "train": True}
    with pytest.raises(ValueError, match=message):
        Loader(**{**arguments, **changed})


@pytest.mark.parametrize("index", [-1, 4])
def test_a_batch_that_is_not_in_the_epoch(index):
    with pytest.raises(IndexError, match=f"index: {index}, an epoch has batches 0 to 3"):
        loader().batch(0, index)


def test_a_for_loop_is_an_epoch():
    batches, again = loader(), loader()
    for epoch in range(3):
        assert same(collect(batches), collect(again.epoch(epoch)))
    assert batches.started == 3
    assert again.started == 0  # `epoch` counts nothing
    x, y = next(iter(again))
    assert same([(x, y)], collect([again.batch(0, 0)]))


def test_repr_is_short():
    assert repr(loader()) == ("Loader(4 batches of 5 of 23 images (8, 8, 3), train=True, augment=True, device='cpu')")


def test_mean_and_std_are_of_pixels_from_0_to_1():
    images, labels = numbered(4)
    with pytest.raises(ValueError, match=r"mean \(127, 127, 127\), std .*: expected 0 <= mean <= 1"):
        Loader(images, labels, 2, mean=(127, 127, 127), std=(50, 50, 50), train=True)
    with pytest.raises(ValueError, match=r"mean 0.5 and std 0.5, expected one of each per channel"):
        Loader(images, labels, 2, mean=0.5, std=0.5, train=True)
    assert len(Loader(images, labels.tolist(), 2, mean=MEAN, std=STD, train=True)) == 2  # labels in a list
