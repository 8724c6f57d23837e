"""Batches made by threads: from files, by random crops of any size, at another size."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minires.data import ImageError, Loader, Pictures, RandomResizedCrop
from minires.data import host as host_module
from minires.data.host import CropFlip
from minires.device import device_of, to_device
from tests.pictures import make_folder, picture

OPTIONS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
FROM_0_TO_1 = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("host") / "p", {"red": 11, "green": 12})
    return Pictures(sorted(folder.rglob("*.png")), 12)


def collect(batches):
    return [(to_device(x, "cpu").copy(), to_device(y, "cpu")) for x, y in batches]


def same(a, b):
    return len(a) == len(b) > 0 and all(np.array_equal(x, u) and np.array_equal(y, v) for (x, y), (u, v) in zip(a, b))


def loader(images, augment=None, train=True, batch_size=5, **options):
    return Loader(images, np.arange(len(images)), batch_size, train=train, augment=augment, **{**OPTIONS, **options})


@pytest.mark.parametrize("augment", [None, False, RandomResizedCrop(), RandomResizedCrop(jitter=0.4)])
def test_a_batch_of_files_is_a_pure_function_of_seed_epoch_and_index(pictures, augment, monkeypatch):
    whole = collect(loader(pictures, augment).epoch(3))
    assert [x.shape for x, _ in whole] == [(5, 12, 12, 3)] * 4
    for threads in (1, 2, 7):
        monkeypatch.setattr(host_module, "THREADS", threads)
        again = loader(pictures, augment)
        assert same(collect(again.epoch(3)), whole)
        assert same(collect(again.epoch(3, start=2)), whole[2:])
        assert same(collect([again.batch(3, 1)]), whole[1:2])
        assert list(again.epoch(3, start=4)) == []
    assert not same(collect(loader(pictures, augment).epoch(4)), whole)
    assert not same(collect(loader(pictures, augment, seed=1).epoch(3)), whole)


def test_files_and_the_array_of_them_make_the_same_batches(pictures, device):
    array = np.asarray(pictures)
    for options in ({"train": False}, {"augment": False}, {"augment": True}, {"augment": True, "padding": 0}):
        of_files, of_array = (loader(images, device=device, **options) for images in (pictures, array))
        assert (of_files.host is None, of_array.host is None) == (False, True)
        for (x, y), (u, v) in zip(of_files.epoch(1), of_array.epoch(1), strict=True):
            assert device_of(x) == device_of(y) == device
            np.testing.assert_allclose(to_device(x, "cpu"), to_device(u, "cpu"), atol=1e-6)
            assert np.array_equal(to_device(y, "cpu"), to_device(v, "cpu"))


def test_another_size_than_the_files_were_given(pictures):
    x, _ = loader(pictures, train=False, image_size=9).batch(0, 0)
    expected = np.asarray(Pictures(pictures.paths[:5], 9)) / np.float32(255)
    np.testing.assert_allclose(x, (expected - np.float32(OPTIONS["mean"])) / np.float32(OPTIONS["std"]), atol=1e-6)
    with pytest.raises(ValueError, match="image_size: the pictures have sizes of their own"):
        loader(Pictures(pictures.paths))
    assert loader(Pictures(pictures.paths), image_size=9).batch(0, 0)[0].shape == (5, 9, 9, 3)


def test_grey_images_are_resized_and_cropped():
    images = np.random.default_rng(0).integers(0, 256, (6, 10, 10, 1), np.uint8)
    for augment in (False, True, RandomResizedCrop(jitter=0.2)):
        x, _ = Loader(
            images, np.arange(6), 4, mean=(0.5,), std=(0.2,), train=True, augment=augment, image_size=7
        ).batch(0, 0)
        assert x.shape == (4, 7, 7, 1)
    with pytest.raises(ValueError, match="only images of 1 or 3 channels can be resized"):
        Loader(np.zeros((2, 8, 8, 4), np.uint8), [0, 1], 2, mean=(0,) * 4, std=(1,) * 4, train=True, image_size=4)


def test_crop_and_flip_on_the_host_is_the_kernels():
    """At the images' own size, where a kernel could have made the batch."""
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)
    by_kernel = Loader(images, np.arange(20), 20, train=True, seed=4, **FROM_0_TO_1)
    by_host = Loader(images, np.arange(20), 20, train=True, seed=4, **FROM_0_TO_1)
    by_host.host = host_module.HostBatches(images, CropFlip(4), (9, 9))
    np.testing.assert_array_equal(by_host.batch(2, 0)[0], by_kernel.batch(2, 0)[0])


def corners(size):
    """An image whose red is its column and whose green is its row."""
    y, x = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=8, max_size=8), st.integers(2, 60), st.integers(2, 60))
def test_a_random_part_lies_inside_and_has_the_area_that_was_drawn(numbers, width, height):
    crop = RandomResizedCrop(area=(0.25, 0.75), aspect=(0.5, 2), flip=False)
    found = crop.apply(corners((width, height)), np.array(numbers), (80, 80)).astype(float)
    span_x, span_y = (np.ptp(found[:, :, channel]) + 1 for channel in (0, 1))  # pixels of the picture
    share, ratio = 0.25 + 0.5 * numbers[0], 0.5 * 4 ** numbers[1]
    w, h = (min((share * width * height * by) ** 0.5, side) for by, side in ((ratio, width), (1 / ratio, height)))
    assert abs(span_x - w) <= 2
    assert abs(span_y - h) <= 2


def test_crops_of_files_are_of_the_middle_square(tmp_path):
    """What the network is shown later: the sides of a wide picture are not learned from."""
    paths = []
    for number, size in enumerate([(90, 30), (30, 90)]):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        long = np.moveaxis(pixels, np.argmax(pixels.shape[:2]), 0)
        long[:30, :, 0] = long[-30:, :, 2] = 255  # red, green in the middle, blue
        long[30:60, :, 1] = 255
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    for images in (Pictures(paths, 16), Pictures(paths)):
        batches = Loader(images, [0, 1], 2, train=True, augment=RandomResizedCrop(), image_size=16, **FROM_0_TO_1)
        for epoch in range(10):
            x, _ = batches.batch(epoch, 0)
            np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), [0, 1, 0], atol=0.02)


def test_random_crops_reach_every_corner_and_mirror_half_of_the_time():
    crop, rng = RandomResizedCrop(area=(0.2, 1)), np.random.default_rng(0)
    image, found = corners((100, 80)), []
    for numbers in crop.draw(rng, 400, 0).T:
        found.append(crop.apply(image, numbers, (16, 16)))
    reds, greens = (np.stack(found)[:, :, :, channel].astype(int) for channel in (0, 1))
    mirrored = reds[:, 8, 0] > reds[:, 8, -1]
    assert 160 < mirrored.sum() < 240
    left = np.where(mirrored, reds[:, 8, -1], reds[:, 8, 0])
    assert left.min() <= 3
    assert left.max() > 40
    assert greens[:, 0, 8].min() <= 3
    assert greens[:, -1, 8].max() >= 76
    still = RandomResizedCrop(area=(0.2, 1), flip=False)
    assert all(a[8, 0, 0] <= a[8, -1, 0] for a in (still.apply(image, n, (16, 16)) for n in still.draw(rng, 50, 0).T))


def test_jitter_changes_brightness_contrast_and_saturation():
    image = picture((90, 120, 150), (32, 32), 0)
    crop = RandomResizedCrop(area=(1, 1), aspect=(1, 1), flip=False, jitter=0.5)

    def jittered(*colours):
        return crop.apply(image, np.array([0, 0, 0, 0, 0.9, *colours]), (32, 32)).astype(float)

    plain = np.asarray(image)
    np.testing.assert_array_equal(jittered(0.5, 0.5, 0.5), plain)  # factors of 1
    np.testing.assert_allclose(jittered(0, 0.5, 0.5), plain * 0.5, atol=1)
    assert np.isclose(jittered(0.5, 0, 0.5).std(axis=(0, 1)), plain.std(axis=(0, 1)) * 0.5, rtol=0.05).all()
    grey = jittered(0.5, 0.5, 0)
    assert np.ptp(grey.mean(axis=(0, 1))) < 0.6 * np.ptp(plain.mean(axis=(0, 1)))
    assert np.isclose(grey.mean(), plain.mean(), atol=4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"area": (0, 1)}, "area: "), ({"area": (0.5, 0.2)}, "area: "), ({"area": (0.5, 1.5)}, "area: "),
        ({"aspect": (0, 1)}, "aspect: "), ({"aspect": (2, 1)}, "aspect: "),
        ({"jitter": 1}, "jitter: 1"), ({"jitter": -0.1}, "jitter: -0.1"), ({"jitter": float("nan")}, "jitter: nan"),
    ],
)  # fmt: skip
def test_impossible_crops_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**changed)


def test_batches_are_made_ahead_but_not_all_of_them(pictures, monkeypatch):
    read, real = [], Pictures.image

    def image(self, index, size):
        read.append(index)
        return real(self, index, size)

    monkeypatch.setattr(Pictures, "image", image)
    batches = loader(pictures, train=False).epoch(0)
    next(batches)
    most = 5 * (1 + host_module.AHEAD)
    time.sleep(0.2)  # enough to read all 23
    assert 5 <= len(read) <= most
    batches.close()  # as after Ctrl-C: the threads end
    assert len(read) <= most
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_file_that_vanishes_ends_the_epoch_and_is_named(tmp_path):
    folder = make_folder(tmp_path / "p", {"red": 12})
    paths = sorted(folder.rglob("*.png"))
    batches = loader(Pictures(paths, 8), train=False)
    paths[7].unlink()
    with pytest.raises(ImageError, match=r"red/007\.png: cannot be read \(No such file"):
        list(batches.epoch(0))
