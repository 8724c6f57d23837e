"""Convolution in cache-sized chunks.

The reference lays out the columns of the whole batch: 9 times the input for a 3x3 window, written to memory and
read back by the matrix product. Here each worker goes through its images a few at a time, so that the columns (4 MB,
or one image's) are still in its cache when they are multiplied. They are copied by one call, from a view in which every
window is a row.

    forward           columns(x) @ weight                              per chunk
    weight gradient   columns(x)ᵀ @ dy                                 summed over chunks and workers
    input gradient    stride 1:  columns(dy) @ weight turned by 180°   a convolution again: no col2im
                      else:      col2im(dy @ weightᵀ)

For stride 1 the columns of dy serve both gradients: xᵀ @ columns(dy) holds the weight gradient too, turned.
Most 3x3 layers go to winograd.py instead; plan.py decides.

Reading order: after plan.py. Next: winograd.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minires.kernels import reference
from minires.kernels.cpu import plan, winograd
from minires.kernels.cpu.matmul import matmul, matmul_transposed, panel_width, panels
from minires.kernels.cpu.workers import framed, parallel, scratch, split
from minires.kernels.geometry import Geometry, Two, output_size


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: int,
) -> np.ndarray:
    """See reference.conv2d."""
    if groups > 1:  # no network here has groups: the definition is fast enough
        return reference.conv2d(x, weight, bias, stride, padding, dilation, groups)
    x = np.ascontiguousarray(x)
    geometry = Geometry(weight.shape[:2], stride, padding, dilation)
    y = np.empty((x.shape[0], *output_size(x.shape, *geometry), weight.shape[3]), np.float32)

    def add_bias(a: int, b: int) -> None:
        if bias is not None:
            np.add(y[a:b], bias, out=y[a:b])

    forward(plain(x), x.shape, weight, geometry, y, lambda: add_bias)
    return y


def conv2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Two,
    padding: Two,
    dilation: Two,
    groups: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """See reference.conv2d_backward."""
    if groups > 1:
        return reference.conv2d_backward(dy, x, weight, stride, padding, dilation, groups, need_dx, need_dweight)
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    dx = np.empty_like(x) if need_dx else None
    geometry = Geometry(weight.shape[:2], stride, padding, dilation)
    dweight = np.empty(weight.shape, np.float32) if need_dweight else None
    backward(plain(dy), plain(x), x.shape, weight, geometry, dx, dweight)
    return dx, dweight


# The two drivers. What happens to a chunk of images [a, b) before and after its matrix product is up to the caller:
# `load(a, b)` brings the input (x itself, or x normalised in scratch memory, see branch.py); `load(a, b, out)` puts it
# where the algorithm wants it, inside a frame of zeros. `new_finish()` gives each worker a function of its own to call
# on each chunk of the output while that is cached, and to gather what it wants to know; the drivers return these
# functions, in the order of the workers.

Load = Callable[..., np.ndarray]
NewFinish = Callable[[], Callable[[int, int], None]]


def plain(x: np.ndarray) -> Load:
    """The chunks of x as they are."""

    def load(a: int, b: int, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return x[a:b]
        np.copyto(out, x[a:b])
        return out

    return load


def forward(
    load: Load, x_shape: tuple, weight: np.ndarray, geometry: Geometry, y: np.ndarray, new_finish: NewFinish
) -> list[Any]:
    """y (N,Ho,Wo,O) = the convolution of load(0, N) with weight (kh,kw,C,O)."""
    kh, kw, c, outputs = weight.shape
    if plan.use_winograd(x_shape, weight.shape, geometry):
        chunks = partial(plan.winograd_chunks, x_shape=x_shape, weight_shape=weight.shape)
        transformed = winograd.transform_weight(weight)

        def compute(a: int, b: int) -> None:
            winograd.multiply(_winograd_patches(load, a, b, x_shape), transformed, y[a:b])

    else:
        chunks = partial(
            plan.chunks, positions=y.shape[1] * y.shape[2], widest=max(kh * kw * c, outputs), kernel=(kh, kw)
        )
        weight_panels = panels(weight, panel_width(kh * kw * c, outputs))

        def compute(a: int, b: int) -> None:
            matmul(columns(load, a, b, x_shape, geometry), weight_panels, out=y[a:b].reshape(-1, outputs))

    def part(begin: int, end: int) -> Callable:
        finish = new_finish()
        for a, b in chunks(begin, end):
            compute(a, b)
            finish(a, b)
        return finish

    return parallel(part, x_shape[0])


def backward(
    load_dy: Load,
    load_x: Load,
    x_shape: tuple,
    weight: np.ndarray,
    geometry: Geometry,
    dx: np.ndarray | None,
    dweight: np.ndarray | None,
    new_finish: NewFinish | None = None,
    scale: np.ndarray | None = None,
) -> list[Any]:
    """Fills dx (N,H,W,C) and dweight (kh,kw,C,O), unless they are None.

    scale   (O,) if the output's gradient is load_dy(a, b) * scale: multiplied into the weight and its gradient, which
            are smaller
    """
    kh, kw, c, o = weight.shape
    h, w = x_shape[1:3]
    turned_padding = (kh - 1 - geometry.padding[0], kw - 1 - geometry.padding[1])
    if dx is not None and plan.use_winograd(x_shape, weight.shape, geometry):
        chunks = partial(plan.winograd_chunks, x_shape=x_shape, weight_shape=weight.shape)
        way = _winograd_backward_of_few if plan.keeps_tiles(x_shape, weight.shape) else _winograd_backward
        compute, total_shape, store_dweight = way(load_dy, load_x, dx, weight, scale)
    elif dx is not None and (kh, kw) != (1, 1) and geometry[1::2] == ((1, 1), (1, 1)) and min(turned_padding) >= 0:
        chunks = partial(plan.chunks, positions=h * w, widest=max(kh * kw * o, c), kernel=(kh, kw), backward=True)
        compute, total_shape, store_dweight = _stride_1_backward(load_dy, load_x, dx, weight, turned_padding, scale)
    else:
        positions = math.prod(output_size(x_shape, *geometry))
        chunks = partial(plan.chunks, positions=positions, widest=max(kh * kw * c, o), kernel=(kh, kw), backward=True)
        compute, total_shape, store_dweight = _any_stride_backward(
            load_dy, load_x, x_shape, dx, weight, geometry, scale
        )

    # One sum for each worker, by where its part begins. Made here and not in scratch memory, because a worker may turn
    # to another caller's task before this one has read the sum. Its first chunk sets it; without images there is none.
    new = np.empty if x_shape[0] else np.zeros
    parts = split(x_shape[0])
    totals = {begin: new(total_shape, np.float32) for begin, _ in parts if dweight is not None}

    def part(begin: int, end: int) -> Callable | None:
        finish = new_finish() if new_finish else None
        for a, b in chunks(begin, end):
            compute(a, b, totals.get(begin), first=a == begin)
            if finish:
                finish(a, b)
        return finish

    finished = parallel(part, x_shape[0], parts=parts)
    if dweight is not None:
        store_dweight(list(totals.values()), dweight)
    return finished


# Four ways to go backward. Each returns
#     compute(a, b, total, first)   fills dx[a:b], unless dx is None, and adds the chunk's share of the weight gradient
#                                   to the worker's total (the first chunk sets it), unless that is None
#     the shape of a total
#     store(totals, dweight)        makes the weight gradient of the workers' totals


def _any_stride_backward(
    load_dy: Load,
    load_x: Load,
    x_shape: tuple,
    dx: np.ndarray | None,
    weight: np.ndarray,
    geometry: Geometry,
    scale: np.ndarray | None,
) -> tuple[Callable, tuple, Callable]:
    kh, kw, c, o = weight.shape
    if dx is not None:
        transposed = panels(np.ascontiguousarray(weight).reshape(-1, o).T, panel_width(o, kh * kw * c), scale)
    one_pixel = geometry[:3] == ((1, 1), (1, 1), (0, 0))

    def compute(a: int, b: int, total: np.ndarray | None, first: bool) -> None:
        dy = load_dy(a, b)
        dy_matrix = dy.reshape(-1, o)  # (m*Ho*Wo, O)
        if total is not None:
            _add_product(total, columns(load_x, a, b, x_shape, geometry), dy_matrix, first)
        if dx is None:
            return
        if one_pixel:
            matmul(dy_matrix, transposed, out=dx[a:b].reshape(-1, c))
            return
        dcolumns = scratch("columns", (dy_matrix.shape[0], kh * kw * c))
        matmul(dy_matrix, transposed, out=dcolumns)
        _col2im(dcolumns.reshape(*dy.shape[:3], kh, kw, c), dx[a:b], geometry)

    return compute, (kh * kw * c, o), lambda totals, dweight: add_up(totals, dweight.reshape(-1, o), scale)


def _stride_1_backward(
    load_dy: Load,
    load_x: Load,
    dx: np.ndarray,
    weight: np.ndarray,
    turned_padding: Two,
    scale: np.ndarray | None,
) -> tuple[Callable, tuple, Callable]:
    kh, kw, c, o = weight.shape
    turned_panels = panels(turned(weight), panel_width(kh * kw * o, c), scale)
    geometry = Geometry((kh, kw), (1, 1), turned_padding, (1, 1))
    h, w = dx.shape[1:3]
    dy_shape = (dx.shape[0], h + kh - 1 - 2 * turned_padding[0], w + kw - 1 - 2 * turned_padding[1], o)

    def compute(a: int, b: int, total: np.ndarray | None, first: bool) -> None:
        laid_out = columns(load_dy, a, b, dy_shape, geometry)  # (m*H*W, kh*kw*O)
        matmul(laid_out, turned_panels, out=dx[a:b].reshape(-1, c))
        if total is not None:
            _add_product(total, load_x(a, b).reshape(-1, c), laid_out, first)

    def store(totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        turned_back = dweight.transpose(2, 0, 1, 3)[:, ::-1, ::-1]  # (C, kh, kw, O), as the totals are
        add_up([total.reshape(c, kh, kw, o) for total in totals], turned_back, scale)

    return compute, (c, kh * kw * o), store


def _winograd_backward(
    load_dy: Load, load_x: Load, dx: np.ndarray, weight: np.ndarray, scale: np.ndarray | None
) -> tuple[Callable, tuple, Callable]:
    transformed = winograd.transform_weight(turned(weight), scale)  # of (3,3,O,C)
    dy_shape = (*dx.shape[:3], weight.shape[3])

    def compute(a: int, b: int, total: np.ndarray | None, first: bool) -> None:
        patches = _winograd_patches(load_dy, a, b, dy_shape)  # (36, tiles, O)
        winograd.multiply(patches, transformed, dx[a:b])
        if total is not None:
            winograd.add_weight_product(total, load_x(a, b), patches, first)

    def store(totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        winograd.store_turned_weight_gradient(add_up(totals, totals[0]), dweight, scale)

    return compute, (36, *weight.shape[2:]), store


def _winograd_backward_of_few(
    load_dy: Load, load_x: Load, dx: np.ndarray, weight: np.ndarray, scale: np.ndarray | None
) -> tuple[Callable, tuple, Callable]:
    """For few tiles and many channels: keeps the transformed tiles of all images, with no total of (36,C,O)."""
    c, o = weight.shape[2:]
    transformed = winograd.transform_weight(turned(weight), scale)  # of (3,3,O,C)
    dy_shape, tiles = (*dx.shape[:3], o), plan.tiles(dx.shape)
    kept_x, kept_dy = (np.empty((36, dx.shape[0] * tiles, channels), np.float32) for channels in (c, o))

    def compute(a: int, b: int, total: np.ndarray | None, first: bool) -> None:
        here = slice(a * tiles, b * tiles)
        winograd.multiply(_winograd_patches(load_dy, a, b, dy_shape, kept_dy[:, here]), transformed, dx[a:b])
        if total is not None:
            winograd.transform_tiles(load_x(a, b), kept_x[:, here])

    def store(totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        winograd.weight_gradient(kept_x, kept_dy, dweight, scale)

    return compute, (0,), store


def _winograd_patches(load: Load, a: int, b: int, shape: tuple, out: np.ndarray | None = None) -> np.ndarray:
    """(36, tiles, C): the transformed patches of the images [a, b) of `shape` (N,H,W,C)."""
    padded, inside = winograd.room_for_patches((b - a, *shape[1:]))
    load(a, b, inside)
    return winograd.transform_patches(padded, out)


def columns(load: Load, a: int, b: int, shape: tuple, geometry: Geometry) -> np.ndarray:
    """(m*Ho*Wo, kh*kw*C): every window of the images [a, b) as a row, in scratch memory; no copy for single pixels.

    shape   of all images, (N,H,W,C)
    """
    (kh, kw), (sh, sw), padding, (dh, dw) = geometry
    m, c = b - a, shape[3]
    if geometry[:3] == ((1, 1), (1, 1), (0, 0)):
        return load(a, b).reshape(-1, c)
    ho, wo = output_size(shape, *geometry)
    if padding == (0, 0):
        padded = load(a, b)
    else:
        padded, inside = framed((m, *shape[1:]), padding)
        load(a, b, inside)
    image, row, column, number = padded.strides
    laid_out = scratch("columns", (m, ho, wo, kh, kw, c))
    # A row of the window is one run of memory, copied as kw*C numbers at a time. np.ndarray makes the view of all
    # windows ten times as fast as as_strided (docs/fast-cpu.md).
    run, steps = ((kw * c,), (number,)) if dw == 1 else ((kw, c), (dw * column, number))
    windows = np.ndarray((m, ho, wo, kh, *run), np.float32, padded, 0, (image, sh * row, sw * column, dh * row, *steps))
    np.copyto(laid_out.reshape(windows.shape), windows)
    return laid_out.reshape(m * ho * wo, kh * kw * c)


def _col2im(dcolumns: np.ndarray, dx: np.ndarray, geometry: Geometry) -> None:
    """dx (m,H,W,C) = reference.col2im(dcolumns), with the padded sum in scratch memory."""
    m, h, w, c = dx.shape
    kernel, stride, (ph, pw), dilation = geometry
    padded = scratch("col2im", (m, h + 2 * ph, w + 2 * pw, c))
    padded.fill(0)
    for u, v, rows, cols in reference.window_slices(dcolumns.shape[1:3], kernel, stride, dilation):
        target = padded[:, rows, cols]
        np.add(target, dcolumns[:, :, :, u, v], out=target)
    np.copyto(dx, padded[:, ph : ph + h, pw : pw + w])


def _add_product(total: np.ndarray, a: np.ndarray, b: np.ndarray, first: bool) -> None:
    """total += aᵀ b; the first product sets it."""
    if first:
        matmul_transposed(a, b, out=total)
        return
    product = scratch("weight gradient", total.shape)
    matmul_transposed(a, b, out=product)
    np.add(total, product, out=total)


def add_up(totals: Sequence[np.ndarray], out: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """out (..., O) = the sum of the workers' arrays, in the order of the workers, times scale (O,) if there is one."""

    def part(a: int, b: int) -> None:
        if len(totals) == 1:
            np.copyto(out[a:b], totals[0][a:b])
        else:
            np.add(totals[0][a:b], totals[1][a:b], out=out[a:b])
        for other in totals[2:]:
            np.add(out[a:b], other[a:b], out=out[a:b])
        if scale is not None:
            np.multiply(out[a:b], scale, out=out[a:b])

    parallel(part, out.shape[0], out.nbytes)
    return out


def turned(weight: np.ndarray) -> np.ndarray:
    """A view (kh,kw,O,C) of (kh,kw,C,O), turned by 180° in the plane: the weight of the convolution that gives dx."""
    return weight[::-1, ::-1].transpose(0, 1, 3, 2)
