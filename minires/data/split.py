"""A part of the training images kept aside, and weights for classes of different size.

Choosing a network, a learning rate or the epoch to stop at is learning too. What has been chosen by the test set's
accuracy is no longer tested by it. The validation part is there to choose by.

Reading order: after host.py. Next: folders.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minires.data.dataset import DataError, Dataset


def held_out(names: Sequence[str] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which of the images of a class are kept aside, by their `names`: bool (n,).

    A share of them, rounded; at least one image is kept aside, and at least one is not. An image is chosen for the hash
    of the seed and its name, so that more images later, or another class, leave nearly all the others where they were.
    Raises `DataError` for fewer than two images.
    """
    chosen = np.zeros(len(names), bool)
    if share:
        if len(names) < 2:
            raise DataError(f"has {len(names)} image{'' if len(names) == 1 else 's'}, and a validation part needs 2")
        hashes = [hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in names]
        order = sorted(range(len(names)), key=hashes.__getitem__)
        chosen[order[: min(max(round(share * len(names)), 1), len(names) - 1)]] = True
    return chosen


def split(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """`dataset` with a `share` of every class's training images as its validation part, drawn by `seed`.

    Raises `DataError` for a share outside 0 <= share < 1, for a class with one image, or if there is a validation part.
    """
    check_share(share)
    if len(dataset.val_images):
        raise DataError(f"{dataset.name}: has a validation part of {len(dataset.val_images):,} images already")
    aside = np.zeros(len(dataset.train_labels), bool)
    for label, name in enumerate(dataset.classes):
        of_class = np.flatnonzero(dataset.train_labels == label)
        try:
            aside[of_class] = held_out(of_class.astype(str), share, seed) if len(of_class) else False
        except DataError as error:
            raise DataError(f"{dataset.name}: class {name!r} {error}") from None
    images, labels = dataset.train_images, dataset.train_labels
    return replace(
        dataset,
        train_images=images[~aside], train_labels=labels[~aside], val_images=images[aside], val_labels=labels[aside],
    )  # fmt: skip


def check_share(share: float) -> None:
    """Raise `DataError` unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise DataError(f"val: {share}, expected a share of the training images, at least 0 and below 1")


def class_weights(dataset: Dataset) -> np.ndarray:
    """Weights (K,) for `F.cross_entropy` that make rare classes count as much as common ones, float32.

    N / (K * images of the class), of the training images: 1 for all if the classes are equally large, and the weight of
    all images together is N. A class without training images has weight 0.
    """
    counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    weights = counts.sum() / (dataset.num_classes * np.maximum(counts, 1))
    return np.where(counts, weights, 0).astype(np.float32)
