"""Which algorithm and which chunk size a layer gets: all of it in one place.

    layer                                                       algorithm   chunk
    3x3, stride 1, padding 1, C and O >= 32, at least 3/4 of     Winograd    384 tiles of 4x4 outputs where C*O <= 32²,
    the outputs of 4x4 tiles are used, >= 16 tiles a worker                  128 where C*O <= 64², 96 above
    other windows                                                im2col      4 MB of columns; backward >= 256 rows
    1x1                                                          product     2 MB of input or output; likewise

The bounds were measured on two Zen 4 cores (1 MB second-level cache each) with OpenBLAS 0.3.31. Below 32 channels
Winograd's transforms cost more than its products save. The environment variable MINIRES_CONV=direct turns Winograd off.
Winograd rounds about ten times as coarsely as im2col (docs/fast-cpu.md has both errors).

Reading order: after matmul.py. Next: convolution.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

from minires.cpu import workers
from minires.reference import Geometry, output_size

COLUMN_BYTES = 4 << 20  # of one chunk: the columns stay in the caches until they are multiplied
PIXEL_BYTES = 2 << 20  # the same for 1x1, where the columns are the input itself
BACKWARD_ROWS = 256  # a weight gradient is added up once for each chunk, so the chunk must be worth it
TILE = 4  # Winograd computes tiles of TILE x TILE outputs of a 3x3 convolution
PATCH = TILE + 2  # from patches of PATCH x PATCH inputs
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
        and h * w >= WINOGRAD_USED * TILE * TILE * covering
        and n // workers.count * covering >= WINOGRAD_TILES
    )


def keeps_tiles(x_shape: tuple, weight_shape: tuple) -> bool:
    """Whether Winograd's weight gradient waits for the tiles of all images. It does where the tiles of all images are
    smaller than the workers' sums."""
    c, outputs = weight_shape[2:]
    return x_shape[0] * tiles(x_shape) * (c + outputs) <= workers.count * c * outputs


def tile_grid(x_shape: tuple) -> tuple[int, int]:
    """How many tiles cover an image (vertically, horizontally). Tiles at the lower and right border may stick out."""
    return -(-x_shape[1] // TILE), -(-x_shape[2] // TILE)


def tiles(x_shape: tuple) -> int:
    """How many tiles cover an image."""
    return math.prod(tile_grid(x_shape))


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

    A layer takes two kinds of memory. Some arrays live only while the layer is computed: the weight in another layout,
    and the workers' sums. Of these the largest layer counts. The scratch buffers stay, each as large as any layer
    needed the buffer.
    """
    passing, columns, patches, chunk = 0, 0, 0, 0
    for x_shape, weight_shape, geometry in layers:
        n = -(-x_shape[0] // workers.count)  # images of a worker
        c, outputs = weight_shape[2:]
        size = output_size(x_shape, *geometry)
        if use_winograd(x_shape, weight_shape, geometry):
            a, b = next(winograd_chunks(0, n, x_shape, weight_shape))
            weight, in_chunk = PATCH * PATCH * c * outputs, (b - a) * tiles(x_shape)
            sums = x_shape[0] * tiles(x_shape) * PATCH * PATCH * (c + outputs)
            if not keeps_tiles(x_shape, weight_shape):
                sums = workers.count * weight * (1 if b - a == n else 2)
            patches = max(patches, PATCH * PATCH * in_chunk * max(c, outputs))
        else:
            k, positions = math.prod(weight_shape[:3]), math.prod(size)
            a, b = next(chunks(0, n, positions, max(k, outputs), geometry.kernel, backward=True))
            weight = k * outputs
            sums = workers.count * weight * (1 if b - a == n else 2)
            turned = geometry.stride == (1, 1) and geometry.kernel != (1, 1)  # then backward lays out dy
            columns = max(columns, (b - a) * positions * (k // c * outputs if turned else k))
        passing = max(passing, weight + sums)
        chunk = max(chunk, (b - a) * max(math.prod(x_shape[1:]), math.prod(size) * outputs))
    # Winograd has three buffers of the size of its patches. A branch has three buffers of the size of a chunk, and its
    # frames are a fourth.
    return 4 * (passing + workers.count * (columns + 3 * patches + 4 * chunk))
