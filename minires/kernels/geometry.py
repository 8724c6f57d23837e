"""The sizes of sliding windows, shared by convolution and pooling in every room.

Reading order: after kernels/__init__.py. Next: reference.py.
"""

from __future__ import annotations

from typing import NamedTuple

Pair = int | tuple[int, int]

Two = tuple[int, int]


class Geometry(NamedTuple):
    """The (vertical, horizontal) numbers of a convolution."""

    kernel: Two
    stride: Two
    padding: Two
    dilation: Two


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """(vertical, horizontal) from a number or a pair; `ValueError` naming `name` for anything below `least`."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or any(not hasattr(v, "__index__") or v < least for v in both):
        raise ValueError(f"{name} is {value!r}, expected an integer >= {least}, or a pair of them")
    return int(both[0]), int(both[1])


def output_size(
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """(Ho, Wo): how many windows fit into an (N, H, W, C) image; 0 where none does.

    Ho = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1
    """
    free = (n + 2 * p - d * (k - 1) - 1 for n, k, p, d in zip(shape[1:3], kernel, padding, dilation))
    ho, wo = (max(f // s + 1, 0) for f, s in zip(free, stride))
    return ho, wo
