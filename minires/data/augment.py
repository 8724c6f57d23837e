"""Augmentation: random crops and flips, as arrays of random numbers; and resizing.

Each training image is shifted by up to 4 pixels and mirrored half of the time. A network then sees 9 * 9 * 2 = 162
versions of an image and cannot remember pixels. He et al. 2015 (section 4.2) train on CIFAR-10 with just this. This
file draws the random numbers; the kernel `crop_and_flip` moves the pixels.

Reading order: after dataset.py. Next: loader.py.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

PADDING = 4  # pixels of black added on each side before cropping back to the original size


def draw(rng: np.random.Generator, n: int, padding: int = PADDING) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random crops and flips for `n` images: `top` and `left`, int64 (n,), from 0 to 2 * padding; `flip`, bool (n,).

    The crop begins at (`top`, `left`) in the padded image: at (`padding`, `padding`) the crop is the original image.
    """
    top = rng.integers(0, 2 * padding + 1, n)
    left = rng.integers(0, 2 * padding + 1, n)
    flip = rng.integers(0, 2, n).astype(bool)
    return top, left, flip


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images (N, H, W, 3) scaled to (N, size, size, 3) by Pillow: bilinear, averaging when shrinking."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"resize: images are {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)")
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        out[i] = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return out
