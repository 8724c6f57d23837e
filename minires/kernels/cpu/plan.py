"""Which algorithm and which chunk size a layer gets: all of it in one place.

    layer                                                       algorithm   chunk
    3x3, stride 1, padding 1, C and O >= 32, at least 3/4 of     Winograd    384 tiles of 4x4 outputs where C*O <= 32²,
    the outputs of 4x4 tiles are used, >= 16 tiles a worker                  128 where C*O <= 64², 96 above
    other windows                                                im2col      4 MB of columns; backward >= 256 rows
    1x1                                                          product     2 MB of input or output; likewise

The bounds were measured on two Zen 4 cores (1 MB second-level cache each) with OpenBLAS 0.3.31. Below 32 channels
the transforms cost Winograd more than the products it saves. The environment variable MINIRES_CONV=direct turns
Winograd off: it rounds about ten times as coarsely (docs/fast-cpu.md has both errors).

Reading order: after matmul.py. Next: convolution.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

from minires.kernels.cpu import workers
from minires.kernels.geometry import Geometry, output_size

COLUMN_BYTES = 4 << 20  # of one chunk: the columns stay in the caches until they are multiplied
PIXEL_BYTES = 2 << 20  # the same for 1x1, where the columns are the input itself
BACKWARD_ROWS = 256  # a weight gradient is added up once for each chunk, so the chunk must be worth it
WINOGRAD_CHANNELS = 32
WINOGRAD_USED = 0.75  # the share of the tiles' outputs that lies inside the image: 14x14 in 16 tiles
WINOGRAD_TILES = 16  # for each worker

choice = os.environ.get("MINIRES_CONV", "auto")
if choice not in ("auto", "direct"):
    raise ValueError(f"MINIRES_CONV is {choice!r}, expected 'auto' or 'direct'")


def use_winograd(x_shape: tuple, weight_shape: tuple, geometry: tuple) -> bool:
    """Whether winograd.py takes this convolution; `geometry` is (kernel, stride, padding, dilation)."""
    n, h, w, _ = x_shape
    covering = tiles(x_shape)
    return (
        choice == "auto"
        and geometry == ((3, 3), (1, 1), (1, 1), (1, 1))
        and min(weight_shape[2:]) >= WINOGRAD_CHANNELS
        and h * w >= WINOGRAD_USED * 16 * covering
        and n // workers.count * covering >= WINOGRAD_TILES
    )


def keeps_tiles(x_shape: tuple, weight_shape: tuple) -> bool:
    """Whether Winograd's weight gradient waits for the tiles of all images: they are smaller than the workers' sums."""
    c, outputs = weight_shape[2:]
    return x_shape[0] * tiles(x_shape) * (c + outputs) <= workers.count * c * outputs


def tiles(x_shape: tuple) -> int:
    """How many 4x4 tiles cover an image; those at the lower and right border may stick out."""
    return -(-x_shape[1] // 4) * -(-x_shape[2] // 4)


def chunks(
    begin: int, end: int, positions: int, widest: int, kernel: tuple, backward: bool = False
) -> Iterator[tuple[int, int]]:
    """(begin, end) of each chunk of images, for `positions` outputs an image and rows of `widest` floats."""
    rows = (PIXEL_BYTES if kernel == (1, 1) else COLUMN_BYTES) // (4 * widest)
    return even_parts(begin, end, max(rows, BACKWARD_ROWS if backward else 1) // positions)


def winograd_chunks(begin: int, end: int, x_shape: tuple, weight_shape: tuple) -> Iterator[tuple[int, int]]:
    """(begin, end) of each chunk of images."""
    product = weight_shape[2] * weight_shape[3]
    tiles_of_a_chunk = 384 if product <= 32 * 32 else 128 if product <= 64 * 64 else 96
    return even_parts(begin, end, tiles_of_a_chunk // tiles(x_shape))


def even_parts(begin: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """range(begin, end) in contiguous parts of at most max(most, 1), as even as possible."""
    n = end - begin
    parts = -(-n // max(most, 1))
    for i in range(parts):
        yield begin + n * i // parts, begin + n * (i + 1) // parts


def workspace_bytes(layers: Iterable[tuple[tuple, tuple, Geometry]]) -> int:
    """Memory that a backward pass over `layers` (shape of the input, of the weight, geometry) takes while it computes.

    Two things for each layer: what comes and goes with it (its weight in another layout, the workers' sums), of which
    the largest counts; and the scratch buffers, which stay, each as large as any layer needed it.
    """
    passing, columns, patches, chunk = 0, 0, 0, 0
    for x_shape, weight_shape, geometry in layers:
        n = -(-x_shape[0] // workers.count)  # images of a worker
        c, outputs = weight_shape[2:]
        size = output_size(x_shape, *geometry)
        if use_winograd(x_shape, weight_shape, geometry):
            a, b = next(winograd_chunks(0, n, x_shape, weight_shape))
            weight, in_chunk = 36 * c * outputs, (b - a) * tiles(x_shape)
            sums = x_shape[0] * tiles(x_shape) * 36 * (c + outputs)
            if not keeps_tiles(x_shape, weight_shape):
                sums = workers.count * weight * (1 if b - a == n else 2)
            patches = max(patches, 36 * in_chunk * max(c, outputs))
        else:
            k, positions = math.prod(weight_shape[:3]), math.prod(size)
            a, b = next(chunks(0, n, positions, max(k, outputs), geometry.kernel, backward=True))
            weight = k * outputs
            sums = workers.count * weight * (1 if b - a == n else 2)
            turned = geometry.stride == (1, 1) and geometry.kernel != (1, 1)  # then backward lays out dy
            columns = max(columns, (b - a) * positions * (k // c * outputs if turned else k))
        passing = max(passing, weight + sums)
        chunk = max(chunk, (b - a) * max(math.prod(x_shape[1:]), math.prod(size) * outputs))
    # Winograd has three buffers of the size of its patches; a branch has three of a chunk, and its frames are a fourth.
    return 4 * (passing + workers.count * (columns + 3 * patches + 4 * chunk))
