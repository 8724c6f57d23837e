"""Batches made on the host, by threads, while the network trains on the batch before.

A kernel makes the batches of images that lie in memory at the network's size (loader.py). This file makes all others:
from files, by random crops of any size, at another size. Each picture goes through Pillow on its own.

The random numbers of a batch are drawn before the threads begin, and every picture has its own place in the batch: the
batch does not depend on which thread is the fastest.

Reading order: after pictures.py. Next: folders.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from minires.data import augment as augmentation
from minires.data.pictures import BILINEAR, THREADS, Pictures, as_array, as_image, square

AHEAD = 2  # batches that are made before they are asked for


@dataclass(frozen=True)
class RandomResizedCrop:
    """The augmentation of photographs: a random part of the picture, scaled to the size that the network takes.

    Of a file it is a part of the middle square, which is what the network is shown later.

    area    the part's share of the area, drawn between the two (Szegedy et al. 2015 begin at 0.08, for 1.2
            million pictures; a part that small often misses what the picture shows)
    aspect  the part's width over its height, drawn between the two on a logarithmic scale
    flip    mirror half of the pictures; not for letters, or for left and right hands
    jitter  brightness, contrast and saturation change by factors between 1 - jitter and 1 + jitter

    Raises `ValueError` for shares outside 0 < low <= high <= 1, aspects that are not positive, or a jitter outside
    0 <= jitter < 1.
    """

    area: tuple[float, float] = (0.35, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area: {self.area}, expected two shares, 0 < low <= high <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect: {self.aspect}, expected 0 < low <= high")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter: {self.jitter}, expected a number of at least 0 and below 1")

    def draw(self, rng: np.random.Generator, n: int, padding: int) -> np.ndarray:
        """Eight random numbers from 0 to 1 for each of `n` pictures: float64 (8, n). `padding` is CropFlip's."""
        return rng.random((8, n))

    def apply(self, image: Image.Image, numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A version of `image`, uint8 (H, W, C), by its 8 `numbers`; size (W, H)."""
        share, aspect, x, y, flip, *colours = numbers.tolist()
        width, height = image.size
        pixels = (self.area[0] + share * (self.area[1] - self.area[0])) * width * height
        ratio = self.aspect[0] * (self.aspect[1] / self.aspect[0]) ** aspect
        w, h = min((pixels * ratio) ** 0.5, width), min((pixels / ratio) ** 0.5, height)
        left, top = x * (width - w), y * (height - h)
        image = image.resize(size, BILINEAR, box=(left, top, left + w, top + h))
        if self.flip and flip < 0.5:
            image = ImageOps.mirror(image)
        if self.jitter:
            for change, number in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colours):
                image = change(image).enhance(1 + self.jitter * (2 * number - 1))
        return as_array(image)


@dataclass(frozen=True)
class CropFlip:
    """The augmentation of loader.py on the host: shifted by up to `padding` pixels, mirrored, then scaled."""

    padding: int

    draw = staticmethod(augmentation.draw)

    def apply(self, image: Image.Image, numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A version of `image`, uint8 (H, W, C), by the `numbers` top, left and flip; size (W, H)."""
        top, left, flip = map(int, numbers)
        left, top = left - self.padding, top - self.padding
        if left or top:
            image = image.crop((left, top, left + image.width, top + image.height))  # black outside
        if flip:
            image = ImageOps.mirror(image)
        return as_array(image if image.size == size else image.resize(size, BILINEAR))


def host_batches(
    images: np.ndarray | Pictures, augment: bool | RandomResizedCrop, padding: int, image_size: int | None
) -> HostBatches | None:
    """What makes the batches of a `Loader` with these arguments on the host; None if a kernel can make them.

    Raises `ValueError` for pictures of any size without an `image_size`.
    """
    files = isinstance(images, Pictures)
    size = (image_size, image_size) if image_size else images.shape[1:3]
    if None in size:
        raise ValueError("image_size: the pictures have sizes of their own, and a batch needs one: give image_size=...")
    if not files and not isinstance(augment, RandomResizedCrop) and size == images.shape[1:3]:
        return None
    if images.shape[3] not in (1, 3):
        raise ValueError(f"image_size: {image_size}, but only images of 1 or 3 channels can be resized: {images.shape}")
    return HostBatches(images, augment if isinstance(augment, RandomResizedCrop) else CropFlip(padding), size)


class HostBatches:
    """Batches of pixels, uint8 (n, H, W, C), from an array of images or from `Pictures`."""

    def __init__(self, images: np.ndarray | Pictures, augment: RandomResizedCrop | CropFlip, size: tuple[int, int]):
        self.images, self.augment, self.height, self.width = images, augment, *size

    def ahead(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(chosen, pixels) for each of `batches`, made up to AHEAD batches before it is asked for.

        batches  for each batch an array (n, 1 + k): the index of every image, and what `augment` has drawn for it
        chosen   the indices, int64 (n,)

        Raises `ImageError` for a file that cannot be read.
        """
        waiting: deque[tuple[np.ndarray, np.ndarray, list[Future]]] = deque()
        pool = ThreadPoolExecutor(THREADS)
        try:
            for choices in batches:
                pixels = np.empty((len(choices), self.height, self.width, self.images.shape[3]), np.uint8)
                parts = [slice(k, None, THREADS) for k in range(THREADS)]
                work = [pool.submit(self._fill, pixels[part], choices[part]) for part in parts]
                waiting.append((choices[:, 0].astype(np.int64), pixels, work))
                if len(waiting) > AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _fill(self, pixels: np.ndarray, choices: np.ndarray) -> None:
        for out, (index, *numbers) in zip(pixels, choices):
            out[...] = self.augment.apply(self._image(int(index)), np.array(numbers), (self.width, self.height))

    def _image(self, index: int) -> Image.Image:
        if not isinstance(self.images, Pictures):
            return as_image(self.images[index])
        image = self.images.image(index, self.width)
        if isinstance(self.augment, CropFlip):
            return as_image(square(image, self.width, self.width))  # as `minires predict` does
        side = min(image.size)  # a part of the square that `minires predict` looks at, at full resolution
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))


def _finished(chosen: np.ndarray, pixels: np.ndarray, work: list[Future]) -> tuple[np.ndarray, np.ndarray]:
    for part in work:
        part.result()
    return chosen, pixels
