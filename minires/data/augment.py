"""Augmentation: random crops and flips, as arrays of random numbers.

Each training image is shifted by up to 4 pixels and mirrored half of the time. A network then sees 9 * 9 * 2 = 162
versions of an image and cannot remember pixels. He et al. 2015 (section 4.2) train on CIFAR-10 with just this. This
file draws the random numbers; the kernel `crop_and_flip` moves the pixels. host.py has the crops for photographs.

Reading order: after dataset.py. Next: loader.py.
"""

from __future__ import annotations

import numpy as np

PADDING = 4  # pixels of black added on each side before cropping back to the original size


def draw(rng: np.random.Generator, n: int, padding: int = PADDING) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random crops and flips for `n` images: `top` and `left`, int64 (n,), from 0 to 2 * padding; `flip`, bool (n,).

    The crop begins at (`top`, `left`) in the padded image: at (`padding`, `padding`) the crop is the original image.
    """
    top = rng.integers(0, 2 * padding + 1, n)
    left = rng.integers(0, 2 * padding + 1, n)
    flip = rng.integers(0, 2, n).astype(bool)
    return top, left, flip
