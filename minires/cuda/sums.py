"""Sums over rows: sums.cu launched.

Reading order: after sums.cu. Next: batch_norm.cu and batch_norm.py.
"""

from __future__ import annotations

from minires.cuda.launch import THREADS, activation_of, channel_grid, program, vector_width
from minires.device import Array, module_of


def column_sum(x: Array) -> Array:
    """See reference.column_sum; float32."""
    xp = module_of(x)
    x, channels = xp.ascontiguousarray(x), x.shape[-1]
    rows, vector = x.size // channels, vector_width(channels, x)
    grid, block = channel_grid(rows, channels, vector)
    partials = xp.empty((grid[1], channels), dtype="float32")
    kernel = program("sums", ACTIVATION=activation_of(x), VECTOR=vector)["column_sum_partials"]
    kernel(grid, block, x=x, partials=partials, rows=rows, channels=channels, parts=grid[1])
    return sum_parts(partials)


def sum_parts(partials: Array, out: Array | None = None) -> Array:
    """(parts, ...) float32 -> (...): the sum over the first axis, in order; into `out` if given."""
    total = module_of(partials).empty(partials.shape[1:], dtype="float32") if out is None else out
    kernel, size = program("sums")["sum_parts"], total.size
    kernel((-(-size // THREADS),), (THREADS,), partials=partials, out=total, parts=len(partials), size=size)
    return total
