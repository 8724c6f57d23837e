"""A data set: uint8 images with integer labels, checked once, and the constants that normalise the images.

Reading order: after optim/schedules.py. Next: augment.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minires.device import Array

Images = Any  # a uint8 array (N, H, W, C), or `Pictures`, which are files in its place


class DataError(ValueError):
    """Data that is missing or damaged. The text is one line: the file, the fault and the remedy."""


class NotAvailable(DataError):
    """Data that is neither on disk nor available from the network (damaged data raises `DataError` itself)."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels for training, for validation, and for testing.

    Images are uint8 (N, H, W, C), labels int64 (N,) from 0 to `num_classes` - 1, `mean` and `std` C floats on the
    scale where a pixel is 0 to 1. Validation and test images may be none; files may stand for images (`Pictures`).
    `name` says honestly which images these are; every report shows the name.
    Raises `DataError` for arrays that do not fit this description.
    """

    name: str
    train_images: Images
    train_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val_images: Images = None  # None becomes an empty part
    val_labels: Array = None

    def __post_init__(self) -> None:
        if self.val_images is None:
            object.__setattr__(self, "val_images", self.train_images[:0])
        if self.val_labels is None:
            object.__setattr__(self, "val_labels", self.train_labels[:0])
        image, channels = self.train_images.shape[1:], len(self.mean)
        for part in ("train", "val", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            n = len(images)
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels or 0 in images.shape[1:]:
                raise DataError(
                    f"{self.name}: {part} images are {images.dtype} {images.shape}, "
                    f"expected uint8 (N, H, W, {channels})"
                )
            if images.shape[1:] != image:
                raise DataError(f"{self.name}: {part} images are {images.shape[1:]}, expected {image}, as for training")
            if labels.dtype != np.int64 or labels.shape != (n,):
                raise DataError(f"{self.name}: {part} labels are {labels.dtype} {labels.shape}, expected int64 ({n},)")
            if n and not 0 <= labels.min() <= labels.max() < self.num_classes:
                found = f"{part} labels run from {labels.min()} to {labels.max()}"
                raise DataError(f"{self.name}: {found}, expected 0 to {self.num_classes - 1}")
        if len(self.train_images) == 0:
            raise DataError(f"{self.name}: train images are none")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        parts = {"training": self.train_images, "validation": self.val_images, "test": self.test_images}
        sizes = " and ".join(f"{len(images):,} {part}" for part, images in parts.items() if len(images))
        return f"Dataset({self.name!r}: {sizes} images {self.train_images.shape[1:]}, {self.num_classes} classes)"

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any training image, any training label, or their order.

        Of files the names and sizes count, not the content.
        """
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels):
            digest.update(f"{array.dtype} {array.shape}".encode())
            of_files = getattr(array, "fingerprint", None)  # Pictures have one
            digest.update(of_files() if of_files else np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def notes(self, image_size: int | None = None) -> dict[str, Any]:
        """What `minires predict` has to know of the training images, to go with the weights: `mr.save_weights(model,
        path, notes=dataset.notes())`. The name, the classes, mean, std, and the size, or `image_size` if resized."""
        height, width = self.train_images.shape[1:3]
        size = image_size or (height if height == width else None)
        notes = {"dataset": self.name, "classes": list(self.classes), "mean": list(self.mean), "std": list(self.std)}
        return notes | ({"image_size": size} if size else {})

    def subset(self, train_size: int, seed: int = 0) -> Dataset:
        """The same data set with `train_size` training images, the classes as balanced as possible.

        Subsets with the same seed are nested, for curves of accuracy over training set size: a smaller subset begins a
        larger one. Raises `DataError` unless 1 <= train_size <= number of training images.
        """
        total = len(self.train_images)
        if not 1 <= train_size <= total:
            raise DataError(f"train_size: {train_size} is out of range, {self.name} has {total} training images")
        order = np.random.default_rng([seed]).permutation(total)
        turn = np.empty(total, np.int64)  # the k-th image of its class, in shuffled order, has turn k
        for label in range(self.num_classes):
            of_class = self.train_labels[order] == label
            turn[of_class] = np.arange(of_class.sum())
        # All first turns (one image of every class), then all second turns, ...
        chosen = order[np.argsort(turn, kind="stable")][:train_size]
        return replace(self, train_images=self.train_images[chosen], train_labels=self.train_labels[chosen])
