"""Which algorithm and which chunk size a layer gets: all of it in one place.

    layer                                                        algorithm    chunk
    3x3, stride 1, padding 1, C and O >= 32, H and W multiples    Winograd     128 tiles of 4x4 outputs (C*O <= 64²,
    of 4, >= 32 tiles a worker                                                 and > 128²), else 48
    everything else                                               im2col       columns of 4 MB; backward at least 512 rows

The bounds were measured on two Zen 4 cores (1 MB second-level cache each) with OpenBLAS 0.3.31. Below 32 channels
the transforms cost Winograd more than the products it saves. The environment variable MINIRES_CONV=direct turns
Winograd off: its results are rounded 3-5 times as coarsely (docs/fast-cpu.md has both errors).

Reading order: after matmul.py. Next: convolution.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from minires.kernels.cpu import workers

COLUMN_BYTES = 4 << 20  # of one chunk: the columns stay in the caches until they are multiplied
BACKWARD_ROWS = 512  # a weight gradient is added up once for each chunk, so the chunk must be worth it
WINOGRAD_CHANNELS = 32
WINOGRAD_TILES = 32  # for each worker

_choice = os.environ.get("MINIRES_CONV", "auto")
if _choice not in ("auto", "direct"):
    raise ValueError(f"MINIRES_CONV is {_choice!r}, expected 'auto' or 'direct'")


def use_winograd(x_shape: tuple, weight_shape: tuple, stride: tuple, padding: tuple, dilation: tuple) -> bool:
    """Whether winograd.py takes this convolution."""
    n, h, w, _ = x_shape
    return (
        _choice == "auto"
        and weight_shape[:2] == (3, 3)
        and stride == padding == dilation == (1, 1)
        and min(weight_shape[2:]) >= WINOGRAD_CHANNELS
        and h % 4 == w % 4 == 0
        and n // workers.count * (h // 4) * (w // 4) >= WINOGRAD_TILES
    )


def chunks(begin: int, end: int, positions: int, widest: int, backward: bool = False) -> Iterator[tuple[int, int]]:
    """(begin, end) of each chunk of images, for `positions` outputs an image and rows of `widest` floats."""
    rows = max(COLUMN_BYTES // (4 * widest), BACKWARD_ROWS if backward else 1)
    return even_parts(begin, end, rows // positions)


def winograd_chunks(begin: int, end: int, tiles: int, channels: int, outputs: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each chunk of images, for `tiles` tiles an image."""
    product = channels * outputs
    tiles_of_a_chunk = 48 if 64 * 64 < product <= 128 * 128 else 128
    return even_parts(begin, end, tiles_of_a_chunk // tiles)


def even_parts(begin: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """range(begin, end) in contiguous parts of at most max(most, 1), as even as possible."""
    n = end - begin
    parts = -(-n // max(most, 1))
    for i in range(parts):
        yield begin + n * i // parts, begin + n * (i + 1) // parts
