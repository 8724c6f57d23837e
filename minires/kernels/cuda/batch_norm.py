"""Batch normalisation: batch_norm.cu launched; forward in three launches, backward in three.

Reading order: after batch_norm.cu. Next: blas.py.
"""

from __future__ import annotations

from minires.device import Array, module_of
from minires.kernels.cuda.launch import BLOCKS, THREADS, activation_of, blocks, program, vector_width


def channel_grid(
    rows: int, channels: int, vector: int, blocks: int = BLOCKS
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(grid, block) for kernels in which a thread stays with `vector` channels and walks down the rows.

    The block's width is a power of 2, at most a warp; the grid's height is the number of parts the rows are cut into:
    as many as fill the GPU, but no fewer than 8 rows for a thread.
    """
    groups = -(-channels // vector)
    width = min(32, 1 << (groups - 1).bit_length())  # threads for the channels; the rest of the block are rows
    height, across = THREADS // width, -(-groups // width)
    parts = max(1, min(-(-rows // (8 * height)), blocks // across))
    return (across, parts), (width, height)


def _kernels(x: Array, vector: int):
    return program("batch_norm", ACTIVATION=activation_of(x), VECTOR=vector)


def _rows(x: Array) -> tuple[Array, int, int]:
    """x contiguous, the number of its rows M and of its channels C."""
    x = module_of(x).ascontiguousarray(x)
    return x, x.size // x.shape[-1], x.shape[-1]


def column_sum(x: Array) -> Array:
    """See reference.column_sum; float32."""
    x, rows, channels = _rows(x)
    vector = vector_width(channels, x)
    grid, block = channel_grid(rows, channels, vector)
    partials = module_of(x).empty((grid[1], channels), dtype="float32")
    kernels = _kernels(x, vector)
    kernels["column_sum_partials"](grid, block, x=x, partials=partials, rows=rows, channels=channels, parts=grid[1])
    return sum_parts(partials)


def sum_parts(partials: Array, out: Array | None = None) -> Array:
    """(parts, ...) float32 -> (...): the sum over the first axis, in order; into `out` if given."""
    out = module_of(partials).empty(partials.shape[1:], dtype="float32") if out is None else out
    kernel = program("batch_norm")["sum_parts"]
    kernel((-(-out.size // THREADS),), (THREADS,), partials=partials, out=out, parts=len(partials), size=out.size)
    return out


def batch_norm_statistics(x: Array) -> tuple[Array, Array]:
    """See reference.batch_norm_statistics; float32."""
    x, rows, channels = _rows(x)
    xp, vector = module_of(x), vector_width(channels, x)
    grid, block = channel_grid(rows, channels, vector)
    parts = grid[1]
    partials = xp.empty((parts, 3, channels), dtype="float32")
    mean, var = xp.empty(channels, dtype="float32"), xp.empty(channels, dtype="float32")
    kernels = _kernels(x, vector)
    kernels["batch_norm_partials"](grid, block, x=x, partials=partials, rows=rows, channels=channels, parts=parts)
    kernels["batch_norm_statistics"](
        (-(-channels // 32),), (32, 8), partials=partials, mean=mean, var=var, parts=parts, channels=channels
    )
    return mean, var


def update_running_statistics(
    running_mean: Array, running_var: Array, mean: Array, var: Array, count: int, momentum: float
) -> None:
    """See reference.update_running_statistics; one launch."""
    program("batch_norm")["update_running_statistics"](
        (-(-mean.size // THREADS),), (THREADS,), running_mean=running_mean, running_var=running_var, mean=mean, var=var,
        momentum=momentum, unbiased=count / (count - 1), channels=mean.size,
    )  # fmt: skip


def batch_norm_apply(
    x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float, residual: Array | None, relu: bool
) -> Array:
    """See reference.batch_norm_apply."""
    x, rows, channels = _rows(x)
    xp = module_of(x)
    residual = None if residual is None else xp.ascontiguousarray(residual)
    y = xp.empty(x.shape, dtype=x.dtype)
    vector = vector_width(channels, x, residual, y)
    grid, block = channel_grid(rows, channels, vector, 8 * BLOCKS)
    mean, var, weight, bias = map(xp.ascontiguousarray, (mean, var, weight, bias))
    _kernels(x, vector)["batch_norm_apply"](
        grid, block, x=x, mean=mean, var=var, weight=weight, bias=bias, residual=residual, y=y, eps=eps, relu=int(relu),
        rows=rows, channels=channels,
    )  # fmt: skip
    return y


def batch_norm_backward(
    dy: Array,
    x: Array,
    y: Array,
    mean: Array,
    var: Array,
    weight: Array,
    eps: float,
    training: bool,
    relu: bool,
    need_dresidual: bool,
    *,
    bias: Array | None = None,
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array, Array, Array | None]:
    """See reference.batch_norm_backward.

    bias  of the batch norm, if no residual was added: then y is not read, but computed again from x; it may be None
    out   where to put dweight and dbias
    """
    x, rows, channels = _rows(x)
    xp = module_of(x)
    dy = xp.ascontiguousarray(dy)
    y = xp.ascontiguousarray(y) if relu and bias is None else None
    bias = bias if relu else None
    g = xp.empty(x.shape, dtype=x.dtype) if relu and need_dresidual else None
    dx = xp.empty(x.shape, dtype=x.dtype)
    mean, var, weight = map(xp.ascontiguousarray, (mean, var, weight))
    dweight, dbias = (xp.empty(channels, dtype="float32") if a is None else a for a in out)

    vector = vector_width(channels, dy, x, y, g, dx)
    grid, block = channel_grid(rows, channels, vector)
    parts = grid[1]
    partials, coefficients = xp.empty((parts, 2, channels), dtype="float32"), xp.empty((3, channels), dtype="float32")
    kernels = _kernels(x, vector)
    kernels["batch_norm_backward_partials"](
        grid, block, dy=dy, x=x, y=y, mean=mean, var=var, weight=weight, bias=bias, g=g, partials=partials, eps=eps,
        rows=rows, channels=channels, parts=parts,
    )  # fmt: skip
    kernels["batch_norm_backward_coefficients"](
        (-(-channels // 32),), (32, 8), partials=partials, mean=mean, var=var, weight=weight, dweight=dweight,
        dbias=dbias, coefficients=coefficients, eps=eps, count=rows if training else 0, parts=parts, channels=channels,
    )  # fmt: skip
    if g is not None:  # the mask has been applied already
        dy, y, bias = g, None, None
    grid, block = channel_grid(rows, channels, vector, 8 * BLOCKS)
    kernels["batch_norm_backward_apply"](
        grid, block, dy=dy, x=x, y=y, mean=mean, bias=bias, coefficients=coefficients, dx=dx, rows=rows,
        channels=channels,
    )  # fmt: skip
    return dx, dweight, dbias, dy if need_dresidual else None


def scale_and_shift(y: Array, scale: Array | None, shift: Array, residual: Array | None, relu: bool) -> None:
    """In place: y * scale + shift [+ residual] [relu], with scale and shift (C,): batch norm in inference, or a
    bias."""
    xp, channels = module_of(y), y.shape[-1]
    residual = None if residual is None else xp.ascontiguousarray(residual)
    vector = vector_width(channels, y, residual)
    kernel = program("elementwise", ACTIVATION=activation_of(y), VECTOR=vector)["scale_and_shift"]
    kernel(
        (blocks(y.size // vector),), (THREADS,), y=y, scale=None if scale is None else xp.ascontiguousarray(scale),
        shift=xp.ascontiguousarray(shift), residual=residual, relu=int(relu), channels=channels, size=y.size,
    )  # fmt: skip
