"""A residual branch as one operation: what stays in the cache between its layers.

A branch is convolution, batch norm, ReLU, convolution, batch norm, ReLU, ..., then the shortcut's addition. Computed
layer by layer, each batch norm reads its input from memory twice and writes its output once in forward, and reads the
input twice more in backward. Here batch norm has no pass of its own:

    forward    The statistics are taken from each chunk that the convolution has just computed, while the chunk is
               cached. The next convolution normalises each chunk just before using it.
    backward   The ReLU mask and the sums that batch norm needs are taken from each chunk of gradient that the
               convolution has just computed. The next convolution applies batch norm's gradient to each chunk just
               before using it.

The normalised activations inside the branch are never stored. Backward computes them again, chunk by chunk, from the
convolution's output, which is stored anyway. For ResNet-101 that saves a sixth of the activations' memory.

Reading order: after batch_norm.py. Next: pooling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from minires.cpu import convolution
from minires.cpu.batch_norm import GradientSums, Moments, backward_coefficients, scale_and_shift
from minires.cpu.convolution import Images
from minires.cpu.elementwise import (
    by_image_row,
    chunks,
    mask_gradient,
    positive_mask,
    relu_in_place,
    repeats,
    wide,
    zeros,
)
from minires.cpu.workers import parallel, scratch
from minires.nn.fused import BranchBackward, BranchLayer, InferenceLayer
from minires.reference import output_size, update_running_statistics

Vectors = tuple[np.ndarray, np.ndarray]  # two numbers for each channel


class _Saved(NamedTuple):
    """What a layer keeps for backward: the convolution's output and its statistics per channel."""

    y: np.ndarray  # (N,Ho,Wo,O)
    mean: np.ndarray
    var: np.ndarray


def branch(
    x: np.ndarray, layers: Sequence[BranchLayer], shortcut: np.ndarray | None, relu: bool
) -> tuple[np.ndarray, BranchBackward]:
    """See nn.fused.Branch."""
    source, shape, saved = Images(np.ascontiguousarray(x)), x.shape, []
    for layer in layers:
        y = np.empty((shape[0], *output_size(shape, *layer.geometry), layer.weight.shape[3]), np.float32)
        gathered = convolution.forward(source, shape, layer.weight, layer.geometry, y, partial(_Statistics, y))
        mean, var = Moments.merged([worker.moments for worker in gathered], y.shape[3])
        if layer.running:
            update_running_statistics(layer.running, mean, var, y.size // y.shape[3])
        saved.append(_Saved(y, mean, var))
        source, shape = _Normalised(y, *_scale_and_shift(layer, saved[-1])), y.shape
    has_shortcut = shortcut is not None
    z = _join(layers[-1], saved[-1], shortcut, relu)
    mask = z if relu else None  # without the ReLU backward does not need z

    def backward(
        dz: np.ndarray, need_dx: bool, shortcut_is_x: bool, out: Sequence[np.ndarray | None]
    ) -> tuple[np.ndarray | None, list[np.ndarray], np.ndarray | None]:
        g, sums = _reduce_join(np.ascontiguousarray(dz), mask, saved[-1])
        dx, gradients = _backward(g, sums, x, layers, saved, need_dx, g if shortcut_is_x else None, out)
        return dx, gradients, g if has_shortcut and not shortcut_is_x else None

    return z, backward


def evaluate_branch(
    x: np.ndarray, layers: Sequence[InferenceLayer], shortcut: np.ndarray | None, relu: bool
) -> np.ndarray:
    """See nn.fused.EvaluateBranch. Each chunk is scaled, shifted and masked while the chunk is cached."""
    x = np.ascontiguousarray(x)
    for i, (weight, geometry, norm, bias) in enumerate(layers):
        y = np.empty((x.shape[0], *output_size(x.shape, *geometry), weight.shape[3]), np.float32)
        last = i == len(layers) - 1
        scale, shift = (None, bias) if norm is None else norm.scale_and_shift()
        epilogue = _Epilogue(y, scale, shift, shortcut if last else None, relu or not last)  # one for all workers
        convolution.forward(Images(x), x.shape, weight, geometry, y, lambda epilogue=epilogue: epilogue)
        x = y
    return x


def _backward(
    g: np.ndarray,
    sums: Vectors,
    x: np.ndarray,
    layers: Sequence[BranchLayer],
    saved: list[_Saved],
    need_dx: bool,
    added: np.ndarray | None,
    out: Sequence[np.ndarray | None],
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """dx (None if not needed), and the list of the layers' gradients, see nn.fused.BranchBackward.

    g, sums   the gradient of the last batch norm's output, and (Σ g, Σ g (y - mean)) of it
    added     what is added to dx, while each chunk of dx is cached: the shortcut's gradient, if the shortcut was x
    saved     is emptied layer by layer, so that each array is freed as soon as it has been used
    """
    gradients: list[np.ndarray] = []
    dx: np.ndarray | None = None
    while saved:
        layer, here = layers[len(saved) - 1], saved.pop()
        count = here.y.size // here.y.shape[3]  # M
        (scale, slope, offset), dbn_weight, dbn_bias = backward_coefficients(
            sums, count, here.mean, here.var, layer.bn_weight, layer.eps
        )
        dy = _BatchNormGradient(g, here.y, slope, offset)
        i = 3 * len(saved)  # where the layer's gradients are in `out`
        out_weight, out_bn_weight, out_bn_bias = out[i : i + 3]
        dweight = np.empty(layer.weight.shape, np.float32) if out_weight is None else out_weight
        if saved:  # the input is the output of the layer before, normalised
            before = saved[-1]
            dx = np.empty(before.y.shape, np.float32)
            new_x = partial(_MaskAndSums, before, *_scale_and_shift(layers[len(saved) - 1], before), dx)
            gathered = convolution.backward(dy, new_x, dx.shape, layer.weight, layer.geometry, dx, dweight, scale)
            g, sums = dx, GradientSums.merged([worker.sums for worker in gathered], dx.shape[3])
        else:
            dx = np.empty(x.shape, np.float32) if need_dx else None
            new_x = partial(_AddToGradient, np.ascontiguousarray(x), dx, added)
            convolution.backward(dy, new_x, x.shape, layer.weight, layer.geometry, dx, dweight, scale)
        gradients[:0] = dweight, _put(dbn_weight, out_bn_weight), _put(dbn_bias, out_bn_bias)
    return dx, gradients


def _put(gradient: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The gradient (O,), written to `out` if there is one."""
    if out is None:
        return gradient
    np.copyto(out, gradient)
    return out


# What is done to a chunk [a, b) of images before and after the convolution: sources and finishers, see convolution.py.


def _rows_of(x: np.ndarray) -> int:
    """R of wide rows that never span two images."""
    return repeats(x.shape[1] * x.shape[2], x.shape[3])


def _scale_and_shift(layer: BranchLayer, saved: _Saved) -> Vectors:
    """The layer's batch norm as y * scale + shift, in wide rows."""
    r = _rows_of(saved.y)
    return scale_and_shift(saved.mean, saved.var, layer.bn_weight, layer.bn_bias, layer.eps, r)


class _Normalised:
    """Source of relu(y * scale + shift): the output of a batch norm and its ReLU, computed in scratch memory."""

    def __init__(self, y: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
        self.y, self.r, self.scale, self.shift = y, _rows_of(y), scale, shift

    def before_relu(self, a: int, b: int) -> np.ndarray:
        """y * scale + shift, in wide rows."""
        y_rows = wide(self.y[a:b], self.r)
        rows = scratch("branch input", y_rows.shape)
        np.multiply(y_rows, self.scale, out=rows)
        return np.add(rows, self.shift, out=rows)

    def load(self, a: int, b: int) -> np.ndarray:
        rows = self.before_relu(a, b)
        relu_in_place(rows)
        return rows.reshape(self.y[a:b].shape)

    def load_into(self, inside: np.ndarray, a: int, b: int) -> None:
        inside_rows = by_image_row(inside)
        np.maximum(self.before_relu(a, b).reshape(inside_rows.shape), zeros(inside_rows.shape[2]), out=inside_rows)


class _MaskAndSums(_Normalised):
    """A worker's input in backward: the source of x = relu(batch_norm(y)), and the finisher of dx.

    The finisher takes each chunk of dx back through the ReLU, in place. It sums Σ g and Σ g (y - mean) over the chunks,
    for the gradient of the batch norm. The mask of the ReLU is read from batch_norm(y). The convolution has usually
    loaded the chunk just before, and the worker keeps that array. Where the convolution has not loaded the chunk, since
    no weight gradient is wanted, the finisher computes batch_norm(y) itself.
    """

    def __init__(self, saved: _Saved, scale: np.ndarray, shift: np.ndarray, dx: np.ndarray) -> None:
        super().__init__(saved.y, scale, shift)
        self.dx, self.sums = dx, GradientSums(saved.mean, self.r)
        self.chunk: tuple[int, int] | None = None  # the chunk whose batch_norm(y), after ReLU or before, is in rows
        self.rows: np.ndarray  # set with the chunk

    def before_relu(self, a: int, b: int) -> np.ndarray:
        self.chunk, self.rows = (a, b), super().before_relu(a, b)
        return self.rows

    def finish(self, a: int, b: int) -> None:
        rows = self.rows if self.chunk == (a, b) else self.before_relu(a, b)
        mask, self.chunk = positive_mask(rows), None  # the mask is written over the rows
        g = wide(self.dx[a:b], self.r)
        np.bitwise_and(g.view(np.int32), mask, out=g.view(np.int32))
        self.sums.add(g, wide(self.y[a:b], self.r))


class _AddToGradient(Images):
    """The branch's input x in backward. `added`, if any, is added to each chunk of dx."""

    def __init__(self, x: np.ndarray, dx: np.ndarray | None, added: np.ndarray | None) -> None:
        super().__init__(x)
        self.dx, self.added = dx, added

    def finish(self, a: int, b: int) -> None:
        if self.dx is not None and self.added is not None:
            np.add(self.dx[a:b], self.added[a:b], out=self.dx[a:b])


class _BatchNormGradient:
    """Source of g + slope*y + offset, computed in scratch memory: the gradient of a convolution's output y, up to a
    factor for each channel (convolution.backward's scale)."""

    def __init__(self, g: np.ndarray, y: np.ndarray, slope: np.ndarray, offset: np.ndarray) -> None:
        self.g, self.y, self.r = g, y, _rows_of(y)
        self.slope, self.offset = np.tile(slope, self.r), np.tile(offset, self.r)

    def without_g(self, a: int, b: int) -> np.ndarray:
        """slope*y + offset, in wide rows."""
        y_rows = wide(self.y[a:b], self.r)
        rows = scratch("branch dy", y_rows.shape)
        np.multiply(y_rows, self.slope, out=rows)
        return np.add(rows, self.offset, out=rows)

    def load(self, a: int, b: int) -> np.ndarray:
        rows = self.without_g(a, b)
        np.add(rows, wide(self.g[a:b], self.r), out=rows)
        return rows.reshape(self.y[a:b].shape)

    def load_into(self, inside: np.ndarray, a: int, b: int) -> None:
        inside_rows, rows = by_image_row(inside), self.without_g(a, b)
        np.add(rows.reshape(inside_rows.shape), by_image_row(self.g[a:b]), out=inside_rows)


class _Statistics:
    """Finisher that takes in the moments of each chunk of y."""

    def __init__(self, y: np.ndarray) -> None:
        self.y, self.r, self.moments = y, _rows_of(y), Moments()

    def finish(self, a: int, b: int) -> None:
        self.moments.add(wide(self.y[a:b], self.r))


class _Epilogue:
    """Finisher: y = [relu](y * scale + shift [+ shortcut]), in place."""

    def __init__(
        self, y: np.ndarray, scale: np.ndarray | None, shift: np.ndarray, shortcut: np.ndarray | None, relu: bool
    ) -> None:
        self.y, self.r, self.shortcut, self.relu = y, _rows_of(y), shortcut, relu
        self.scale, self.shift = None if scale is None else np.tile(scale, self.r), np.tile(shift, self.r)

    def finish(self, a: int, b: int) -> None:
        rows = wide(self.y[a:b], self.r)
        if self.scale is not None:
            np.multiply(rows, self.scale, out=rows)
        np.add(rows, self.shift, out=rows)
        if self.shortcut is not None:
            np.add(rows, wide(self.shortcut[a:b], self.r), out=rows)
        if self.relu:
            relu_in_place(rows)


# The end of the branch, where the shortcut is added. It is a pass of its own, because the last batch norm's statistics
# need all of the last convolution's output.


def _join(layer: BranchLayer, last: _Saved, shortcut: np.ndarray | None, relu: bool) -> np.ndarray:
    """z = [relu](batch_norm(y) [+ shortcut])."""
    r = _rows_of(last.y)
    z = np.empty_like(last.y)
    y_rows, z_rows = wide(last.y, r), wide(z, r)
    shortcut_rows = None if shortcut is None else wide(shortcut, r)
    scale, shift = _scale_and_shift(layer, last)

    def part(begin: int, end: int) -> None:
        for chunk in chunks(begin, end, y_rows.shape[1]):
            out = z_rows[chunk]
            np.multiply(y_rows[chunk], scale, out=out)
            np.add(out, shift, out=out)
            if shortcut_rows is not None:
                np.add(out, shortcut_rows[chunk], out=out)
            if relu:
                relu_in_place(out)

    parallel(part, y_rows.shape[0])
    return z


def _reduce_join(dz: np.ndarray, z: np.ndarray | None, last: _Saved) -> tuple[np.ndarray, Vectors]:
    """g, the gradient of batch_norm(y) and of the shortcut, and (Σ g, Σ g (y - mean)) per channel.

    z   the branch's output, if it ends in a ReLU
    """
    r, channels = _rows_of(dz), dz.shape[3]
    g = dz if z is None else np.empty_like(dz)
    g_rows, dz_rows, y_rows = (wide(array, r) for array in (g, dz, last.y))
    z_rows = None if z is None else wide(z, r)

    def part(begin: int, end: int) -> GradientSums:
        sums = GradientSums(last.mean, r)
        for chunk in chunks(begin, end, g_rows.shape[1]):
            if z_rows is not None:
                mask_gradient(dz_rows[chunk], z_rows[chunk], out=g_rows[chunk])
            sums.add(g_rows[chunk], y_rows[chunk])
        return sums

    return g, GradientSums.merged(parallel(part, g_rows.shape[0]), channels)
