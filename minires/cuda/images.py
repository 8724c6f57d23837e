"""Images on the device: images.cu launched.

Reading order: after images.cu. Next: optimizers.cu.
"""

from __future__ import annotations

from minires.cuda.launch import THREADS, blocks, int64, program
from minires.device import Array, module_of


def crop_and_flip(images: Array, top: Array, left: Array, flip: Array, padding: int) -> Array:
    """See reference.crop_and_flip."""
    xp = module_of(images)
    images = xp.ascontiguousarray(images)
    n, h, w, c = images.shape
    out = xp.empty(images.shape, dtype="uint8")
    program("images")["crop_and_flip"](
        (blocks(n * h * w),), (THREADS,), images=images, top=int64(top), left=int64(left),
        flip=xp.ascontiguousarray(flip), out=out, padding=padding, n=n, h=h, w=w, c=c,
    )  # fmt: skip
    return out


def normalize(images: Array, mean: Array, std: Array) -> Array:
    """See reference.normalize."""
    xp = module_of(images)
    images, c = xp.ascontiguousarray(images), images.shape[-1]
    out = xp.empty(images.shape, dtype="float32")
    pixels = images.size // c
    program("images")["normalize"](
        (blocks(pixels),), (THREADS,), images=images, mean=mean, std=std, out=out, pixels=pixels, c=c
    )
    return out


def make_batch(
    images: Array, labels: Array, choices: Array, begin: int, n: int, padding: int, mean: Array, std: Array
) -> tuple[Array, Array]:
    """See reference.make_batch; one launch. `choices` are int32, `labels` int64."""
    xp = module_of(images)
    count, h, w, c = images.shape
    x, y = xp.empty((n, h, w, c), dtype="float32"), xp.empty(n, dtype="int64")
    program("images")["make_batch"](
        (blocks(n * h * w),), (THREADS,), images=images, labels=labels, choices=choices, mean=mean, std=std, x=x, y=y,
        begin=begin, total=len(choices), count=count, padding=padding, n=n, h=h, w=w, c=c,
    )  # fmt: skip
    return x, y
