"""Batch normalisation: batch_norm.cu launched; forward in three launches, backward in three.

In a fused branch the shortcut's addition and the ReLU are done in the same passes: `normalise_add_relu`, and its
backward. Batch norm alone is these two without shortcut and ReLU.

Reading order: after batch_norm.cu. Next: blas.py.
"""

from __future__ import annotations

from minires.cuda.launch import BLOCKS, activation_of, channel_grid, program, vector_width
from minires.device import Array, module_of
from minires.reference import Running

MERGERS = 32  # as in batch_norm.cu


def _kernels(x: Array, vector: int):
    return program("batch_norm", ACTIVATION=activation_of(x), VECTOR=vector)


def _rows(x: Array) -> tuple[Array, int, int]:
    """x contiguous, the number of its rows M and of its channels C."""
    x = module_of(x).ascontiguousarray(x)
    return x, x.size // x.shape[-1], x.shape[-1]


def batch_norm_statistics(x: Array, running: Running | None = None) -> tuple[Array, Array]:
    """See reference.batch_norm_statistics; float32."""
    x, rows, channels = _rows(x)
    xp, vector = module_of(x), vector_width(channels, x)
    grid, block = channel_grid(rows, channels, vector)
    parts = grid[1]
    partials = xp.empty((parts, 3, channels), dtype="float32")
    mean, var = xp.empty(channels, dtype="float32"), xp.empty(channels, dtype="float32")
    kernels = _kernels(x, vector)
    kernels["batch_norm_partials"](grid, block, x=x, partials=partials, rows=rows, channels=channels, parts=parts)
    moved = running or Running(None, None, None, 0.0)
    kernels["batch_norm_statistics"](
        (-(-channels // 32),), (32, MERGERS), partials=partials, mean=mean, var=var, running_mean=moved.mean,
        running_var=moved.var, batches=moved.batches, momentum=moved.momentum,
        unbiased=rows / (rows - 1) if running else 0.0, parts=parts, channels=channels,
    )  # fmt: skip
    return mean, var


def batch_norm_apply(x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
    """See reference.batch_norm_apply."""
    return normalise_add_relu(x, mean, var, weight, bias, eps, None, relu=False)


def batch_norm_backward(
    dy: Array, x: Array, mean: Array, var: Array, weight: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    """See reference.batch_norm_backward."""
    dx, dweight, dbias, _ = normalise_add_relu_backward(dy, x, mean, var, weight, eps, training)
    return dx, dweight, dbias


# For the fused branch ------------------------------------------------------------------------------------------


def normalise_add_relu(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    bias: Array,
    eps: float,
    shortcut: Array | None,
    relu: bool,
    in_place: bool = False,
) -> Array:
    """z = [relu](batch_norm_apply(x, ...) [+ shortcut]), like x, or over x if that is contiguous; one launch."""
    x, rows, channels = _rows(x)
    xp = module_of(x)
    shortcut = None if shortcut is None else xp.ascontiguousarray(shortcut)
    z = x if in_place else xp.empty(x.shape, dtype=x.dtype)
    vector = vector_width(channels, x, shortcut, z)
    grid, block = channel_grid(rows, channels, vector, 8 * BLOCKS)
    mean, var, weight, bias = map(xp.ascontiguousarray, (mean, var, weight, bias))
    _kernels(x, vector)["batch_norm_apply"](
        grid, block, x=x, mean=mean, var=var, weight=weight, bias=bias, shortcut=shortcut, y=z, eps=eps, relu=int(relu),
        rows=rows, channels=channels,
    )  # fmt: skip
    return z


def normalise_add_relu_backward(
    dz: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    eps: float,
    training: bool,
    *,
    z: Array | None = None,
    bias: Array | None = None,
    need_dshortcut: bool = False,
    out: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array, Array, Array | None]:
    """dx, dweight, dbias, and the shortcut's gradient if needed, for z = normalise_add_relu(x, ...).

    z     where a ReLU followed, its output: the gradient passes where z > 0
    bias  of the batch norm, instead of z, where a ReLU followed and no shortcut was added: then z need not be read, but
          is computed again from x, to the same bit
    out   where to put dweight and dbias

    Without z and bias there was no ReLU.
    """
    x, rows, channels = _rows(x)
    xp = module_of(x)
    dz = xp.ascontiguousarray(dz)
    z = None if z is None else xp.ascontiguousarray(z)
    with_relu = z is not None or bias is not None
    g = xp.empty(x.shape, dtype=x.dtype) if with_relu and need_dshortcut else None  # dz behind the ReLU's mask
    dx = xp.empty(x.shape, dtype=x.dtype)
    mean, var, weight = map(xp.ascontiguousarray, (mean, var, weight))
    dweight, dbias = (xp.empty(channels, dtype="float32") if a is None else a for a in out)

    vector = vector_width(channels, dz, x, z, g, dx)
    grid, block = channel_grid(rows, channels, vector, 2 * BLOCKS)
    parts = grid[1]
    partials, coefficients = xp.empty((parts, 2, channels), dtype="float32"), xp.empty((3, channels), dtype="float32")
    kernels = _kernels(x, vector)
    kernels["batch_norm_backward_partials"](
        grid, block, dy=dz, x=x, y=z, mean=mean, var=var, weight=weight, bias=bias, g=g, partials=partials, eps=eps,
        rows=rows, channels=channels, parts=parts,
    )  # fmt: skip
    kernels["batch_norm_backward_coefficients"](
        (-(-channels // 32),), (32, MERGERS), partials=partials, mean=mean, var=var, weight=weight, dweight=dweight,
        dbias=dbias, coefficients=coefficients, eps=eps, count=rows if training else 0, parts=parts, channels=channels,
    )  # fmt: skip
    if g is not None:  # the mask has been applied already
        dz, z, bias = g, None, None
    grid, block = channel_grid(rows, channels, vector, 8 * BLOCKS)
    kernels["batch_norm_backward_apply"](
        grid, block, dy=dz, x=x, y=z, mean=mean, bias=bias, coefficients=coefficients, dx=dx, rows=rows,
        channels=channels,
    )  # fmt: skip
    return dx, dweight, dbias, dz if need_dshortcut else None
