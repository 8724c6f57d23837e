"""Batches: from uint8 images to normalised float32 arrays on the device, shuffled and augmented.

Batch 17 of epoch 3 is a pure function of (seed, epoch, index): `loader.epoch(3)`. An interrupted run asks for its
remaining batches and gets exactly the batches of a run without interruption. Only `for x, y in loader` counts epochs.

Reading order: after augment.py. Next: train/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from minires import kernels
from minires.data import augment as augmentation
from minires.data.host import RandomResizedCrop, host_batches
from minires.data.pictures import Pictures
from minires.device import Array, to_device

# The generators are seeded with [seed, purpose, epoch, ...]. NumPy pads a short seed with zeros: [s, e] is [s, e, 0].
# Without the purpose the order of an epoch would come from the same numbers as the crops of its batch 0.
ORDER, CROPS = 1, 2


class Batches(Protocol):
    """What `train.fit` and `train.evaluate` take: a `Loader`, or a class of your own."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """The batches (x, y) of an epoch (0, 1, 2, ...), from batch `start` on."""
        ...


class Loader:
    """Batches (x, y) of a data set: x float32 (n, H, W, C), y int64 (n,), NumPy arrays, or CuPy's on "cuda".

    `images` uint8 (N, H, W, C) and `labels` (N,) stay uint8 and integers, on the device, until a batch is made. Files,
    as `Pictures`, are read while the batch before trains. `mean` and `std` (C floats) normalise a batch:
    (pixel / 255 - mean) / std.

    With `train`, an epoch is a new permutation of the images, cut into batches of `batch_size`. An incomplete last
    batch is left out, unless the whole set is smaller than one batch; each epoch leaves out different images.
    Without `train`, every image comes once, in order. `augment` (default: as `train`) adds random flips, and random
    crops from images with `padding` pixels of black around them (0: no crops). For photographs: `RandomResizedCrop()`.
    `image_size` resizes to (n, image_size, image_size, C), after augmentation, on the host.

    Raises `ValueError` for unsuitable arguments, `RuntimeError` with the reason for an unusable GPU.
    """

    def __init__(
        self,
        images: np.ndarray | Pictures,
        labels: np.ndarray,
        batch_size: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        train: bool,
        seed: int = 0,
        augment: bool | RandomResizedCrop | None = None,
        padding: int = augmentation.PADDING,
        image_size: int | None = None,
        device: str = "cpu",
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"images: {images.dtype} {images.shape}, expected uint8 (N, H, W, C) with N >= 1")
        if np.ndim(mean) != 1 or images.shape[3] != len(mean) or np.shape(mean) != np.shape(std):
            raise ValueError(
                f"images: {images.shape} with mean {mean} and std {std}, expected one of each per channel, "
                "channels last: (N, H, W, C)"
            )
        labels = np.asarray(labels)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels: {labels.dtype} {labels.shape}, expected integers ({len(images)},)")
        if not all(value > 0 for value in std) or not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean {mean}, std {std}: expected 0 <= mean <= 1 and std > 0, where a pixel is 0 to 1")
        least = {"batch_size": 1, "seed": 0, "image_size": 1, "padding": 0}
        for name, value in zip(least, (batch_size, seed, image_size, padding)):
            if value is not None and value < least[name]:
                raise ValueError(f"{name}: {value}, expected at least {least[name]}")
        self.batch_size, self.train, self.seed, self.device = batch_size, train, seed, device
        self.started = 0  # epochs, by `for x, y in loader`
        self.augment = train if augment is None else augment
        self.padding = padding if self.augment else 0
        self.host = host_batches(images, self.augment, self.padding, image_size)  # None: a kernel makes the batches
        # The whole set moves to the device once: CIFAR-10 is 184 MB as uint8.
        self.images = images if self.host else to_device(images, device)
        self.labels = to_device(labels.astype(np.int64), device)
        self.mean, self.std = (to_device(np.array(value, np.float32), device) for value in (mean, std))

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.images)
        return max(1, n // self.batch_size) if self.train else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """The batches of the next epoch: 0 in the first `for`, 1 in the second. `epoch(n)` needs no count."""
        self.started += 1
        return self.epoch(self.started - 1)

    def __repr__(self) -> str:
        batches = f"{len(self)} batches of {self.batch_size} of {len(self.images):,} images {self.images.shape[1:]}"
        return f"Loader({batches}, train={self.train}, augment={self.augment}, device={self.device!r})"

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """The batches of an epoch (0, 1, 2, ...), from batch `start` on: none if `start` is `len(self)`."""
        if start >= len(self):  # the run was interrupted after the epoch's last step
            return
        order = self._order(epoch)
        choices = (self._choices(order, epoch, index) for index in range(start, len(self)))
        if self.host:
            yield from map(self._normalized, self.host.ahead(choices))
            return
        # The random numbers of the epoch go to the device at once, 16 bytes an image: no copy in a step.
        choices = to_device(np.concatenate(list(choices)), self.device)
        for begin in range(0, len(choices), self.batch_size):
            yield self._batch(choices, begin)

    def batch(self, epoch: int, index: int) -> tuple[Array, Array]:
        """One batch of an epoch: the `index`-th of `epoch(epoch)`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: {index}, an epoch has batches 0 to {len(self) - 1}")
        choices = self._choices(self._order(epoch), epoch, index)
        if self.host:
            return self._normalized(next(self.host.ahead([choices])))
        return self._batch(to_device(choices, self.device), 0)

    def _order(self, epoch: int) -> np.ndarray:
        n = len(self.images)
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(n) if self.train else np.arange(n)

    def _choices(self, order: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """A row for each place in a batch: the image, then its random numbers. int32 (n, 4) with top, left and flip for
        the kernel, float64 (n, 1 + k) for `host`.

        The host draws the random numbers for every device: all devices see the same batches.
        """
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        numbers = np.zeros((3, len(chosen)))  # the image as it is: `padding` is 0 then
        if self.augment:
            rng = np.random.default_rng([self.seed, CROPS, epoch, index])
            draw = self.host.augment.draw if self.host else augmentation.draw
            numbers = draw(rng, len(chosen), self.padding)
        return np.stack([chosen, *numbers], axis=1).astype(np.float64 if self.host else np.int32)

    def _batch(self, choices: Array, begin: int) -> tuple[Array, Array]:
        """The batch of the rows of `choices` from `begin` on, by a kernel."""
        n = min(self.batch_size, len(choices) - begin)
        make = kernels.of(self.images).make_batch
        return make(self.images, self.labels, choices, begin, n, self.padding, self.mean, self.std)

    def _normalized(self, made: tuple[np.ndarray, np.ndarray]) -> tuple[Array, Array]:
        """The batch of (chosen, pixels) that `host` made."""
        chosen, pixels = (to_device(array, self.device) for array in made)
        return kernels.of(pixels).normalize(pixels, self.mean, self.std), self.labels[chosen]
