"""A residual branch as one operation: what stays in the cache between its layers.

A branch is convolution, batch norm, ReLU, convolution, batch norm, ReLU, ..., then the shortcut's addition. Layer by
layer, each batch norm reads its input from memory twice and writes it once in forward, and reads it twice more in
backward. Here batch norm has no pass of its own:

    forward    its statistics are taken from each chunk the convolution has just made, while that is cached, and the
               next convolution normalises each chunk just before using it
    backward   the ReLU mask and the sums that batch norm needs are taken from each chunk of gradient the convolution
               has just made; the next convolution applies batch norm's gradient to each chunk before using it

The normalised activations inside the branch are never stored: backward makes them again, chunk by chunk, out of the
convolution's output, which is stored anyway. For ResNet-101 that saves a sixth of the activations' memory.

Reading order: after batch_norm.py. Next: pooling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from minires.kernels.cpu import convolution
from minires.kernels.cpu.batch_norm import GradientSums, Moments, backward_coefficients, scale_and_shift
from minires.kernels.cpu.elementwise import (
    by_image_row,
    chunks,
    mask_gradient,
    positive_mask,
    relu_in_place,
    repeats,
    wide,
    zeros,
)
from minires.kernels.cpu.workers import parallel, scratch
from minires.kernels.geometry import Geometry, output_size


@dataclass
class Layer:
    """A convolution without bias and the batch norm behind it. Shapes: weight (kh,kw,C,O), the others (O,)."""

    weight: np.ndarray
    geometry: Geometry
    bn_weight: np.ndarray
    bn_bias: np.ndarray
    eps: float
    bn_gradients: tuple[np.ndarray | None, np.ndarray | None] = (None, None)  # not used here: small, and copied


@dataclass
class Saved:
    """What a layer leaves for backward: the convolution's output and its statistics per channel."""

    y: np.ndarray  # (N,Ho,Wo,O)
    mean: np.ndarray
    var: np.ndarray


def branch(
    x: np.ndarray, layers: Sequence[Layer], residual: np.ndarray | None, relu: bool
) -> tuple[np.ndarray, list[Saved]]:
    """[relu](bn(conv(... relu(bn(conv(x))) ...)) [+ residual]) in training mode, and what backward needs."""
    load = convolution.plain(np.ascontiguousarray(x))
    shape, saved = x.shape, []
    for layer in layers:
        y = np.empty((shape[0], *output_size(shape, *layer.geometry), layer.weight.shape[3]), np.float32)
        finished = convolution.forward(load, shape, layer.weight, layer.geometry, y, partial(_Statistics, y))
        mean, var = Moments.merged([part.moments for part in finished], y.shape[3])
        saved.append(Saved(y, mean, var))
        load, shape = _normalised(layer, saved[-1]), y.shape
    return _join(layers[-1], saved[-1], residual, relu), saved


def evaluate_branch(
    x: np.ndarray,
    layers: Sequence[tuple[np.ndarray, Geometry, np.ndarray | None, np.ndarray]],
    residual: np.ndarray | None,
    relu: bool,
) -> np.ndarray:
    """The same for inference, where batch norm is y * scale + shift: each chunk is finished while it is cached.

    layers  (weight, geometry, scale, shift) of each; scale is None where it is folded into the weight already
    """
    x = np.ascontiguousarray(x)
    for i, (weight, geometry, scale, shift) in enumerate(layers):
        y = np.empty((x.shape[0], *output_size(x.shape, *geometry), weight.shape[3]), np.float32)
        last = i == len(layers) - 1
        finish = _epilogue(y, scale, shift, residual if last else None, relu or not last)
        convolution.forward(convolution.plain(x), x.shape, weight, geometry, y, lambda: finish)  # noqa: B023, called at once
        x = y
    return x


def branch_backward(
    dz: np.ndarray,
    x: np.ndarray,
    z: np.ndarray,
    layers: Sequence[Layer],
    saved: list[Saved],
    relu: bool,
    need_dx: bool,
    add_residual: bool,
    dweights: Sequence[np.ndarray | None],
) -> tuple[np.ndarray | None, list[tuple], np.ndarray]:
    """Gradients of `branch`: dx (None if not needed), (dweight, dbn_weight, dbn_bias) per layer, dresidual.

    `dweights` has for each layer the array to put its weight's gradient into, or None for a new one.
    With `add_residual` the residual was x itself, and its gradient is added to dx while that is cached.
    `saved` is emptied on the way, to free each array as soon as it has been used.
    """
    g, sums = _reduce_join(dz, z, saved[-1], relu)
    dresidual = g
    gradients = []
    while saved:
        layer, here = layers[len(saved) - 1], saved.pop()
        count = here.y.size // here.y.shape[3]  # M
        (scale, slope, offset), dbn_weight, dbn_bias = backward_coefficients(
            sums, count, here.mean, here.var, layer.bn_weight, layer.eps
        )
        load_dy = _batch_norm_gradient(g, here.y, slope, offset)
        if saved:  # the input is the layer before's output, normalised
            before, shape = saved[-1], saved[-1].y.shape
            load_x, dx = _normalised(layers[len(saved) - 1], before), np.empty(shape, np.float32)
            new_finish = partial(_MaskAndSums, dx, before)
        else:
            shape, load_x = x.shape, convolution.plain(np.ascontiguousarray(x))
            dx = np.empty(shape, np.float32) if need_dx else None
            new_finish = partial(_add, dx, dresidual) if need_dx and add_residual else None
        dweight = dweights[len(saved)]
        dweight = np.empty(layer.weight.shape, np.float32) if dweight is None else dweight
        finished = convolution.backward(
            load_dy, load_x, shape, layer.weight, layer.geometry, dx, dweight, new_finish, scale
        )
        gradients.append((dweight, dbn_weight, dbn_bias))
        if saved:
            sums = GradientSums.merged([part.sums for part in finished], dx.shape[3])
        g = dx
    return dx, gradients[::-1], dresidual


# What is done to a chunk [a, b) of images, before and after the convolution (see convolution.forward and .backward).


def _rows_of(x: np.ndarray) -> int:
    """R of wide rows that never span two images."""
    return repeats(x.shape[1] * x.shape[2], x.shape[3])


def _normalised(layer: Layer, saved: Saved) -> convolution.Load:
    """relu(batch_norm(y)) of a chunk, in scratch memory."""
    r = _rows_of(saved.y)
    scale, shift = scale_and_shift(saved.mean, saved.var, layer.bn_weight, layer.bn_bias, layer.eps, r)

    def load(a: int, b: int, out: np.ndarray | None = None) -> np.ndarray:
        rows = wide(scratch("branch input", saved.y[a:b].shape), r)
        np.multiply(wide(saved.y[a:b], r), scale, out=rows)
        np.add(rows, shift, out=rows)
        if out is None:
            relu_in_place(rows)
            return rows.reshape(saved.y[a:b].shape)
        out_rows = by_image_row(out)
        np.maximum(rows.reshape(out_rows.shape), zeros(out_rows.shape[2]), out=out_rows)
        return out

    return load


class _Statistics:
    """Takes in the moments of each chunk of the convolution's output."""

    def __init__(self, y: np.ndarray) -> None:
        self.y, self.r, self.moments = y, _rows_of(y), Moments()

    def __call__(self, a: int, b: int) -> None:
        self.moments.add(wide(self.y[a:b], self.r))


def _epilogue(
    y: np.ndarray, scale: np.ndarray | None, shift: np.ndarray, residual: np.ndarray | None, relu: bool
) -> Callable[[int, int], None]:
    """y = [relu](y * scale + shift [+ residual]) of a chunk, in place."""
    r = _rows_of(y)
    wide_scale, wide_shift = None if scale is None else np.tile(scale, r), np.tile(shift, r)

    def finish(a: int, b: int) -> None:
        rows = wide(y[a:b], r)
        if wide_scale is not None:
            np.multiply(rows, wide_scale, out=rows)
        np.add(rows, wide_shift, out=rows)
        if residual is not None:
            np.add(rows, wide(residual[a:b], r), out=rows)
        if relu:
            relu_in_place(rows)

    return finish


def _batch_norm_gradient(g: np.ndarray, y: np.ndarray, slope: np.ndarray, offset: np.ndarray) -> convolution.Load:
    """The gradient of the convolution's output, up to its scale: g + slope*y + offset of a chunk, in scratch memory."""
    r = _rows_of(y)
    wide_slope, wide_offset = np.tile(slope, r), np.tile(offset, r)

    def load(a: int, b: int, out: np.ndarray | None = None) -> np.ndarray:
        rows = wide(scratch("branch dy", y[a:b].shape), r)
        np.multiply(wide(y[a:b], r), wide_slope, out=rows)
        np.add(rows, wide_offset, out=rows)
        out = rows.reshape(y[a:b].shape) if out is None else out
        out_rows = by_image_row(out)
        np.add(rows.reshape(out_rows.shape), g[a:b].reshape(out_rows.shape), out=out_rows)
        return out

    return load


class _MaskAndSums:
    """Takes a chunk of dx back through the ReLU, in place, and adds up Σ g and Σ g (y - mean).

    Runs right after the chunk's convolution, so "branch input" still holds the chunk's batch_norm(y), ReLU or not.
    """

    def __init__(self, dx: np.ndarray, before: Saved) -> None:
        self.dx, self.y, self.r = dx, before.y, _rows_of(dx)
        self.sums = GradientSums(before.mean, self.r)

    def __call__(self, a: int, b: int) -> None:
        g = wide(self.dx[a:b], self.r)
        mask = positive_mask(scratch("branch input", g.shape))
        np.bitwise_and(g.view(np.int32), mask, out=g.view(np.int32))
        self.sums.add(g, wide(self.y[a:b], self.r))


def _add(dx: np.ndarray, other: np.ndarray) -> Callable[[int, int], None]:
    return lambda a, b: np.add(dx[a:b], other[a:b], out=dx[a:b])


# The end of the branch, where the shortcut joins: a pass of its own, since all of the last convolution's output must
# exist before its statistics do.


def _join(layer: Layer, last: Saved, residual: np.ndarray | None, relu: bool) -> np.ndarray:
    r = _rows_of(last.y)
    z = np.empty_like(last.y)
    y_rows, z_rows = wide(last.y, r), wide(z, r)
    residual_rows = None if residual is None else wide(residual, r)
    scale, shift = scale_and_shift(last.mean, last.var, layer.bn_weight, layer.bn_bias, layer.eps, r)

    def part(begin: int, end: int) -> None:
        for chunk in chunks(begin, end, y_rows.shape[1]):
            out = z_rows[chunk]
            np.multiply(y_rows[chunk], scale, out=out)
            np.add(out, shift, out=out)
            if residual_rows is not None:
                np.add(out, residual_rows[chunk], out=out)
            if relu:
                relu_in_place(out)

    parallel(part, y_rows.shape[0])
    return z


def _reduce_join(
    dz: np.ndarray, z: np.ndarray, last: Saved, relu: bool
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """g, the gradient behind the final ReLU, and (Σ g, Σ g (y - mean)) per channel."""
    r, channels = _rows_of(z), z.shape[3]
    g = np.empty_like(z) if relu else dz
    g_rows, dz_rows, z_rows, y_rows = (wide(array, r) for array in (g, dz, z, last.y))

    def part(begin: int, end: int) -> GradientSums:
        sums = GradientSums(last.mean, r)
        for chunk in chunks(begin, end, z_rows.shape[1]):
            if relu:
                mask_gradient(dz_rows[chunk], z_rows[chunk], out=g_rows[chunk])
            sums.add(g_rows[chunk], y_rows[chunk])
        return sums

    return g, GradientSums.merged(parallel(part, z_rows.shape[0]), channels)
