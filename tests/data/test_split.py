"""A validation part of any data set, and weights for classes of different size."""

from __future__ import annotations

import numpy as np
import pytest

import minires.functional as F
from minires import Tensor, data
from tests.data.test_dataset import dataset


def numbers(images):
    """Each image of `dataset` holds its own number."""
    return images[:, 0, 0, 0].tolist()


def test_a_share_of_every_class_is_kept_aside():
    whole = dataset()  # classes of 10, 20, 30, 40
    parts = data.split(whole, 0.2)
    assert np.bincount(parts.val_labels).tolist() == [2, 4, 6, 8]
    assert np.bincount(parts.train_labels).tolist() == [8, 16, 24, 32]
    assert sorted(numbers(parts.train_images) + numbers(parts.val_images)) == list(range(100))
    for images, labels in ((parts.train_images, parts.train_labels), (parts.val_images, parts.val_labels)):
        assert np.array_equal(whole.train_labels[numbers(images)], labels)
        assert numbers(images) == sorted(numbers(images))
    assert parts.test_images is whole.test_images
    assert numbers(data.split(whole, 0.2).val_images) == numbers(parts.val_images)
    assert numbers(data.split(whole, 0.2, seed=1).val_images) != numbers(parts.val_images)
    assert len(data.split(whole, 0).val_images) == 0
    assert parts.fingerprint() != whole.fingerprint()
    assert parts.subset(8).val_images is parts.val_images


def test_shares_that_are_none_and_a_second_split():
    for share in (1, 1.5, -0.1, float("nan")):
        with pytest.raises(data.DataError, match=f"val: {share}, expected a share of the training images"):
            data.split(dataset(), share)
    with pytest.raises(data.DataError, match="test: has a validation part of 20 images already"):
        data.split(data.split(dataset(), 0.2), 0.2)
    alone = dataset(train_images=np.zeros((2, 4, 4, 3), np.uint8), train_labels=np.array([0, 1]))
    with pytest.raises(data.DataError, match="test: class 'a' has 1 image, and a validation part needs 2"):
        data.split(alone, 0.2)


def test_load_splits_what_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "shapes10", lambda data_dir, log: dataset())
    assert len(data.load("shapes", tmp_path, val=0.1).val_images) == 10
    assert len(data.load("shapes", tmp_path).val_images) == 0


def test_with_class_weights_every_class_has_the_same_say():
    whole = dataset()
    weights = data.class_weights(whole)
    np.testing.assert_allclose(weights, [100 / 4 / n for n in (10, 20, 30, 40)], rtol=1e-6)
    assert np.isclose(weights[whole.train_labels].sum(), 100)
    logits = np.random.default_rng(0).standard_normal((100, 4))
    each = np.array(
        [F.cross_entropy(Tensor(logits[i : i + 1]), whole.train_labels[i : i + 1]).item() for i in range(100)]
    )
    expected = np.mean([each[whole.train_labels == label].mean() for label in range(4)])
    found = F.cross_entropy(Tensor(logits), whole.train_labels, weight=weights).item()
    assert np.isclose(found, expected, rtol=1e-6)
    some = dataset(train_labels=np.repeat([0, 1, 3, 3], [10, 20, 30, 40]))
    assert data.class_weights(some)[2] == 0
