"""A data set: uint8 images with integer labels, checked once, and the constants that normalise the images.

Reading order: after optim/schedules.py. Next: augment.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np


class DataError(ValueError):
    """Data that is missing or damaged. The text is one line: the file, the fault and the remedy."""


class NotAvailable(DataError):
    """Data that is neither on disk nor available from the network (damaged data raises `DataError` itself)."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels for training and for testing.

    Images are uint8 (N, H, W, 3), labels int64 (N,) from 0 to `num_classes` - 1, `mean` and `std` three floats on the
    scale where a pixel is 0 to 1. `name` says honestly which images these are; every report shows the name.
    Raises `DataError` for arrays that do not fit this description.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
                raise DataError(
                    f"{self.name}: {part} images are {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)"
                )
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise DataError(
                    f"{self.name}: {part} labels are {labels.dtype} {labels.shape}, expected int64 ({len(images)},)"
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise DataError(
                    f"{self.name}: {part} labels run from {labels.min()} to {labels.max()}, "
                    f"expected 0 to {self.num_classes - 1}"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {self.train_images.shape[1:]}, test images "
                f"{self.test_images.shape[1:]}, expected the same (H, W, 3)"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        sizes = f"{len(self.train_images):,} training and {len(self.test_images):,} test images"
        return f"Dataset({self.name!r}: {sizes} {self.train_images.shape[1:]}, {self.num_classes} classes)"

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any training image, any training label, or their order."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def notes(self, image_size: int | None = None) -> dict[str, object]:
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
