from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from minires import data


def dataset(**changed) -> data.Dataset:
    labels = np.repeat(np.arange(4), [10, 20, 30, 40])
    fields = {
        "name": "test",
        "train_images": np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8),
        "train_labels": labels,
        "test_images": np.zeros((5, 4, 4, 3), np.uint8),
        "test_labels": np.zeros(5, np.int64),
        "classes": ("a", "b", "c", "d"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
    }
    return data.Dataset(**{**fields, **changed})


def test_a_dataset_is_frozen_and_counts_its_classes():
    d = dataset()
    assert d.num_classes == 4
    with pytest.raises(FrozenInstanceError):
        d.name = "other"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.zeros((100, 3, 4, 4), np.uint8)}, r"train images are uint8 \(100, 3, 4, 4\)"),
        ({"train_images": np.zeros((100, 4, 4), np.uint8)}, "train images"),
        ({"train_images": np.zeros((100, 4, 4, 3), np.float32)}, "train images are float32"),
        ({"train_images": np.zeros((0, 4, 4, 3), np.uint8), "train_labels": np.zeros(0, np.int64)}, "train images"),
        (
            {"test_images": np.zeros((5, 8, 8, 3), np.uint8)},
            r"test images are \(8, 8, 3\), expected \(4, 4, 3\), as for training",
        ),
        ({"test_images": np.zeros((6, 4, 4, 3), np.uint8)}, r"test labels are int64 \(5,\), expected int64 \(6,\)"),
        ({"test_labels": np.zeros(5, np.int32)}, "test labels are int32"),
        ({"test_labels": np.array([0, 1, 2, 3, 4])}, "test labels run from 0 to 4, expected 0 to 3"),
        ({"test_labels": np.array([0, 1, 2, 3, -1])}, "test labels run from -1 to 3"),
        (
            {"val_images": np.zeros((2, 4, 4, 3), np.uint8), "val_labels": np.zeros(3, np.int64)},
            r"val labels are int64",
        ),
        ({"val_images": np.zeros((2, 5, 4, 3), np.uint8), "val_labels": np.zeros(2, np.int64)}, "val images are"),
        ({"mean": (0.5,), "std": (0.2,)}, r"train images are uint8 \(100, 4, 4, 3\), expected uint8 \(N, H, W, 1\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changed, message):
    with pytest.raises(data.DataError, match=message) as caught:
        dataset(**changed)
    assert "\n" not in str(caught.value)


def test_subset_is_balanced_nested_and_keeps_images_with_their_labels():
    d = dataset()
    small, large = d.subset(8), d.subset(40)
    assert np.bincount(small.train_labels).tolist() == [2, 2, 2, 2]
    assert np.bincount(large.train_labels).tolist() == [10, 10, 10, 10]
    index = large.train_images[:, 0, 0, 0]  # every image holds its own number
    assert np.array_equal(d.train_labels[index], large.train_labels)
    assert len(set(index.tolist())) == 40
    assert np.array_equal(index[:8], small.train_images[:, 0, 0, 0])
    assert small.test_images is d.test_images
    assert np.array_equal(d.subset(8).train_images, small.train_images)
    assert not np.array_equal(d.subset(8, seed=1).train_images, small.train_images)


def test_subset_of_everything_is_a_permutation():
    everything = dataset().subset(100)
    assert sorted(everything.train_images[:, 0, 0, 0].tolist()) == list(range(100))


@pytest.mark.parametrize("size", [0, -1, 101])
def test_subset_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"train_size: {size} is out of range, test has 100 training images"):
        dataset().subset(size)


def test_repr_is_short():
    assert repr(dataset()) == "Dataset('test': 100 training and 5 test images (4, 4, 3), 4 classes)"


def test_validation_and_test_images_may_be_none():
    d = dataset(test_images=np.zeros((0, 4, 4, 3), np.uint8), test_labels=np.zeros(0, np.int64))
    assert d.val_images.shape == d.test_images.shape == (0, 4, 4, 3)
    assert d.val_labels.dtype == np.int64
    assert repr(d) == "Dataset('test': 100 training images (4, 4, 3), 4 classes)"


def test_grey_images():
    grey = {f"{part}_images": getattr(dataset(), f"{part}_images")[..., :1] for part in ("train", "test")}
    assert dataset(**grey, mean=(0.5,), std=(0.2,)).notes()["mean"] == [0.5]


def test_notes():
    expected = {"dataset": "test", "classes": list("abcd"), "mean": [0.5] * 3, "std": [0.2] * 3}
    assert dataset().notes() == {**expected, "image_size": 4}
    assert dataset().notes(image_size=9) == {**expected, "image_size": 9}
    wide = {"train_images": np.zeros((100, 4, 6, 3), np.uint8), "test_images": np.zeros((5, 4, 6, 3), np.uint8)}
    assert dataset(**wide).notes() == expected  # `minires predict` crops squares
