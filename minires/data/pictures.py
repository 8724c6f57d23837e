"""Picture files: read in any of Pillow's formats, upright, without transparency, and cut to squares.

`minires predict` prepares a picture by these functions, and so does the training on a folder: what a network is shown
later is what the network has learned from.

Reading order: when images come from files. Next: host.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from minires.data.dataset import DataError

BILINEAR = Image.Resampling.BILINEAR
THREADS = min(os.cpu_count() or 1, 8)  # that read pictures; Pillow releases Python's global lock while it decodes


class ImageError(DataError):
    """A file that is not an image, or a damaged one. The text is one line naming it."""


def read_image(path: str | Path, least: int | None = None, grey: bool = False) -> Image.Image:
    """The picture at `path` in RGB, or in shades of grey: upright, transparent parts on white. Raises `ImageError`.

    least  a JPEG may come at 1/2, 1/4 or 1/8 of its size, but no side shorter than `least`. A photograph of 12
           megapixels is then read two to four times as fast: the JPEG's blocks are not decoded to all their pixels
    """
    try:
        with Image.open(path) as image:
            if least:
                image.draft(None, (least, least))
            rgb = to_rgb(ImageOps.exif_transpose(image))
            return rgb.convert("L") if grey else rgb
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif "cannot identify" in reason:
            reason = "not an image"
        raise ImageError(f"{path}: cannot be read ({reason})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB: grey of 8, 16 or 32 bits, palettes, CMYK, transparency."""
    if image.mode[0] in "IF":  # Pillow would clip 16-bit grey at 255: a white image
        grey = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        largest = np.abs(grey).max(initial=0)
        if image.mode.startswith("I;16"):
            scale = 255 / 65535
        elif image.mode == "F" and largest <= 1:
            scale = 255
        else:
            scale = 255 / max(largest, 255)
        return Image.fromarray((grey * scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def square(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """The middle `size` x `size` of an image whose shorter side is scaled to `resize`: uint8 (size, size, C)."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) > 8 * short:  # scaling a whole strip of 1 x 10,000 pixels would take gigabytes
        image = ImageOps.fit(image, (min(width, 8 * short), min(height, 8 * short)))
        width, height = image.size
    scaled = (max(resize * width // short, resize), max(resize * height // short, resize))
    left, top = (round((side - size) / 2) for side in scaled)
    image = image.resize(scaled, BILINEAR)
    return as_array(image.crop((left, top, left + size, top + size)))


def as_array(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3), or (H, W, 1) of a grey image."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def as_image(array: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3) or (H, W, 1) as Pillow's image."""
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


class Pictures:
    """Files in place of an array of images: each is read when it is asked for.

        pictures = Pictures(paths, size=224)
        pictures.shape                      # (N, 224, 224, 3)
        pictures[5]                         # the sixth as an array, uint8 (224, 224, 3)
        pictures[:100], pictures[indices]   # fewer Pictures
        np.asarray(pictures)                # all of them: uint8 (N, 224, 224, 3)

    paths     of the files, any that Pillow reads
    size      the shorter side is scaled to `size`, and the middle square is kept. None: the pictures keep their sizes,
              `shape` is (N, None, None, C), and whoever makes batches says the size
    channels  3, or 1 for shades of grey
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, paths: Sequence[str | Path] | np.ndarray, size: int | None = None, channels: int = 3):
        self.paths = np.array([str(path) for path in paths], dtype=object)
        self.size, self.channels = size, channels

    @property
    def shape(self) -> tuple[Any, ...]:
        return (len(self.paths), self.size, self.size, self.channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"Pictures({len(self)} files, {self.shape[1:]})"

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray | list) -> Pictures: ...
    def __getitem__(self, index: Any) -> np.ndarray | Pictures:
        chosen = self.paths[index]
        if isinstance(chosen, str):
            image = self.image(index, self.size)
            return square(image, self.size, self.size) if self.size else as_array(image)
        return Pictures(chosen, self.size, self.channels)

    def image(self, index: int, size: int | None) -> Image.Image:
        """The picture as Pillow's image, whole. JPEGs may come reduced, if they stay twice as large as `size`."""
        return read_image(self.paths[index], 2 * size if size else None, grey=self.channels == 1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.size is None:
            raise DataError("the pictures have sizes of their own and make no single array: give them a size")
        if copy is False:
            raise ValueError("the pictures are files, and an array of them is always a copy")
        out = np.empty(self.shape, np.uint8)

        def read(index: int) -> None:
            out[index] = self[index]

        in_threads(read, range(len(self)), "reading pictures")
        return out if dtype is None else out.astype(dtype)

    def fingerprint(self) -> bytes:
        """Bytes that change with a name, with the size of a file, or with the order; the files are not read."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for path in map(Path, self.paths):
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
        return digest.digest()


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], title: str) -> list[Any]:
    """`function` of every item, by several threads; the results in the items' order. A terminal shows a bar."""
    items = list(items)
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            results = pool.map(function, items)
            return list(tqdm(results, title, len(items), unit="picture", leave=False, disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
