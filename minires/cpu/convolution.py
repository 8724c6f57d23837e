"""Convolution in cache-sized chunks.

The reference lays out the columns of the whole batch. For a 3x3 window the columns are 9 times the input; they are
written to memory and read back by the matrix product. Here each worker goes through its images a few at a time. The
columns of a chunk, 4 MB or one image's, are still in the worker's cache when they are multiplied. One call copies the
columns, from a view in which every window is a row.

    forward           columns(x) @ weight                              per chunk
    weight gradient   columns(x)ᵀ @ dy                                 summed over chunks and workers
    input gradient    stride 1:  columns(dy) @ weight turned by 180°   a convolution again: no col2im
                      else:      col2im(dy @ weightᵀ)

For stride 1 the columns of dy serve both gradients, because xᵀ @ columns(dy) is the weight gradient, turned.
Most 3x3 layers are computed by winograd.py instead; plan.py decides.

Reading order: after plan.py. Next: winograd.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from minires import reference
from minires.cpu import plan, winograd
from minires.cpu.matmul import matmul, matmul_transposed, panel_width, panels
from minires.cpu.workers import contiguous_strides, framed, parallel, scratch, split
from minires.reference import Geometry, Two, output_size


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
    forward(Images(x), x.shape, weight, geometry, y, partial(AddBias, y, bias))
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
    backward(Images(dy), partial(Images, x), x.shape, weight, geometry, dx, dweight)
    return dx, dweight


# The two drivers, `forward` and `backward`, compute a chunk of images [a, b) at a time. The caller says what happens to
# a chunk before and after its matrix products, while the chunk is cached (branch.py puts batch norm and ReLU there).


class Source(Protocol):
    """Images that a convolution reads, a chunk at a time."""

    def load(self, a: int, b: int) -> np.ndarray:
        """The images [a, b), contiguous (m,H,W,C). They may lie in scratch memory."""
        ...

    def load_into(self, inside: np.ndarray, a: int, b: int) -> None:
        """Write the images [a, b) to `inside` (m,H,W,C), a view of the inside of a frame of zeros."""


class Finisher(Protocol):
    """What a worker does to each chunk of the output. A worker has a finisher of its own, which may gather sums."""

    def finish(self, a: int, b: int) -> None:
        """Called once the images [a, b) of the output are computed."""


class Input(Source, Finisher, Protocol):
    """A worker's source of x in `backward`, and its finisher of dx."""


AnyFinisher = TypeVar("AnyFinisher", bound=Finisher)
AnyInput = TypeVar("AnyInput", bound=Input)


class Images:
    """The images of x (N,H,W,C), contiguous, as they are. As the input of `backward` they leave dx as it is."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def load(self, a: int, b: int) -> np.ndarray:
        """A view of x."""
        return self.x[a:b]

    def load_into(self, inside: np.ndarray, a: int, b: int) -> None:
        """A copy."""
        np.copyto(inside, self.x[a:b])

    def finish(self, a: int, b: int) -> None:
        """dx stays as it is."""


class AddBias:
    """y += bias, in place, where there is a bias (O,)."""

    def __init__(self, y: np.ndarray, bias: np.ndarray | None) -> None:
        self.y, self.bias = y, bias

    def finish(self, a: int, b: int) -> None:
        """y[a:b] += bias."""
        if self.bias is not None:
            np.add(self.y[a:b], self.bias, out=self.y[a:b])


def forward(
    x: Source,
    x_shape: tuple,
    weight: np.ndarray,
    geometry: Geometry,
    y: np.ndarray,
    new_finisher: Callable[[], AnyFinisher],
) -> list[AnyFinisher]:
    """y (N,Ho,Wo,O) = the convolution of x with weight (kh,kw,C,O). Returns the workers' finishers, in their order."""
    kh, kw, c, outputs = weight.shape
    if plan.use_winograd(x_shape, weight.shape, geometry):
        chunks = partial(plan.winograd_chunks, x_shape=x_shape, weight_shape=weight.shape)
        transformed = winograd.transform_weight(weight)

        def compute(a: int, b: int) -> None:
            winograd.multiply(_winograd_patches(x, a, b, x_shape), transformed, y[a:b])

    else:
        chunks = partial(
            plan.chunks, positions=y.shape[1] * y.shape[2], widest=max(kh * kw * c, outputs), kernel=(kh, kw)
        )
        weight_panels = panels(weight, panel_width(kh * kw * c, outputs))

        def compute(a: int, b: int) -> None:
            matmul(columns(x, a, b, x_shape, geometry), weight_panels, out=y[a:b].reshape(-1, outputs))

    def part(begin: int, end: int) -> AnyFinisher:
        finisher = new_finisher()
        for a, b in chunks(begin, end):
            compute(a, b)
            finisher.finish(a, b)
        return finisher

    return parallel(part, x_shape[0])


def backward(
    dy: Source,
    new_x: Callable[[], AnyInput],
    x_shape: tuple,
    weight: np.ndarray,
    geometry: Geometry,
    dx: np.ndarray | None,
    dweight: np.ndarray | None,
    scale: np.ndarray | None = None,
) -> list[AnyInput]:
    """Fills dx (N,H,W,C) and dweight (kh,kw,C,O), unless they are None. Returns the workers' inputs, in their order.

    new_x   gives each worker its source of x, which is its finisher of dx too
    scale   (O,) if the output's gradient is dy * scale. The scale is multiplied into the weight and into its gradient,
            which are smaller than dy.
    """
    way = _way_of(dy, x_shape, weight, geometry, dx, scale)
    # Each worker adds its chunks' weight gradients up in a total of its own, found by where the worker's part begins.
    # Totals are not scratch memory, because a worker may turn to another caller's task before this caller has read the
    # total. The first chunk sets the total. Without images there is no chunk, and the total is zero.
    new = np.empty if x_shape[0] else np.zeros
    parts = split(x_shape[0])
    totals = {begin: new(way.total_shape, np.float32) for begin, _ in parts if dweight is not None}

    def part(begin: int, end: int) -> AnyInput:
        x = new_x()
        for a, b in way.chunks(begin, end):
            way.compute(a, b, x, totals.get(begin), first=a == begin)
            x.finish(a, b)
        return x

    inputs = parallel(part, x_shape[0], parts=parts)
    if dweight is not None:
        way.store(list(totals.values()), dweight)
    return inputs


class BackwardWay(Protocol):
    """A way to compute both gradients of one convolution."""

    total_shape: tuple[int, ...]  # of a worker's sum of its chunks' weight gradients, in the layout that suits the way

    def chunks(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The chunks of a worker's part of the images."""
        ...

    def compute(self, a: int, b: int, x: Source, total: np.ndarray | None, first: bool) -> None:
        """Fill dx[a:b], if dx is wanted. Add the chunk's weight gradient to `total`, unless that is None.

        The first chunk of a worker sets the total.
        """

    def store(self, totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        """dweight (kh,kw,C,O) = the sum of the workers' totals, times the scale."""


def _way_of(
    dy: Source,
    x_shape: tuple,
    weight: np.ndarray,
    geometry: Geometry,
    dx: np.ndarray | None,
    scale: np.ndarray | None,
) -> BackwardWay:
    if dx is None:  # then there is no transform or layout of dy to share between the gradients
        return AnyStride(dy, x_shape, weight, geometry, dx, scale)
    if plan.use_winograd(x_shape, weight.shape, geometry):
        way = WinogradKeepingTiles if plan.keeps_tiles(x_shape, weight.shape) else Winograd
        return way(dy, weight, dx, scale)
    (kh, kw), (ph, pw) = geometry.kernel, geometry.padding
    turned_padding = kh - 1 - ph, kw - 1 - pw
    if geometry.kernel != (1, 1) and geometry.stride == geometry.dilation == (1, 1) and min(turned_padding) >= 0:
        return Stride1(dy, weight, turned_padding, dx, scale)
    return AnyStride(dy, x_shape, weight, geometry, dx, scale)


class AnyStride:
    """dweight = columns(x)ᵀ @ dy and dx = col2im(dy @ weightᵀ), as the reference computes them."""

    def __init__(
        self,
        dy: Source,
        x_shape: tuple,
        weight: np.ndarray,
        geometry: Geometry,
        dx: np.ndarray | None,
        scale: np.ndarray | None,
    ) -> None:
        kh, kw, c, o = weight.shape
        self.dy, self.x_shape, self.geometry, self.dx, self.scale = dy, x_shape, geometry, dx, scale
        if dx is not None:
            weight_matrix = np.ascontiguousarray(weight).reshape(-1, o)  # (kh*kw*C, O)
            self.transposed = panels(weight_matrix.T, panel_width(o, kh * kw * c), scale)
        self.one_pixel = geometry[:3] == ((1, 1), (1, 1), (0, 0))
        self.total_shape = kh * kw * c, o

    def chunks(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Sized by the columns of x."""
        positions = math.prod(output_size(self.x_shape, *self.geometry))
        return plan.chunks(begin, end, positions, max(self.total_shape), self.geometry.kernel, backward=True)

    def compute(self, a: int, b: int, x: Source, total: np.ndarray | None, first: bool) -> None:
        """One product with columns(x), one with the weight."""
        window, o = self.total_shape  # window is kh*kw*C
        dy = self.dy.load(a, b)
        dy_matrix = dy.reshape(-1, o)  # (m*Ho*Wo, O)
        if total is not None:
            _add_product(total, columns(x, a, b, self.x_shape, self.geometry), dy_matrix, first)
        if self.dx is None:
            return
        if self.one_pixel:
            matmul(dy_matrix, self.transposed, out=self.dx[a:b].reshape(-1, window))
            return
        dcolumns = scratch("columns", (dy_matrix.shape[0], window))
        matmul(dy_matrix, self.transposed, out=dcolumns)
        _col2im(dcolumns.reshape(*dy.shape[:3], *self.geometry.kernel, self.dx.shape[3]), self.dx[a:b], self.geometry)

    def store(self, totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        """The totals are in the weight's layout."""
        add_up(totals, dweight.reshape(self.total_shape), self.scale)


class Stride1:
    """dx = columns(dy) @ turned weight, a convolution again, and dweight, turned, = xᵀ @ columns(dy)."""

    def __init__(
        self, dy: Source, weight: np.ndarray, turned_padding: Two, dx: np.ndarray, scale: np.ndarray | None
    ) -> None:
        kh, kw, c, o = weight.shape
        n, h, w, _ = dx.shape
        self.dy, self.dx, self.scale, self.weight_shape = dy, dx, scale, weight.shape
        self.dy_shape = n, h + kh - 1 - 2 * turned_padding[0], w + kw - 1 - 2 * turned_padding[1], o
        self.geometry = Geometry((kh, kw), (1, 1), turned_padding, (1, 1))
        self.turned_panels = panels(turned(weight), panel_width(kh * kw * o, c), scale)
        self.total_shape = c, kh * kw * o

    def chunks(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Sized by the columns of dy."""
        positions = math.prod(self.dx.shape[1:3])
        return plan.chunks(begin, end, positions, max(self.total_shape), self.geometry.kernel, backward=True)

    def compute(self, a: int, b: int, x: Source, total: np.ndarray | None, first: bool) -> None:
        """One layout of dy for both gradients."""
        c = self.dx.shape[3]
        laid_out = columns(self.dy, a, b, self.dy_shape, self.geometry)  # (m*H*W, kh*kw*O)
        matmul(laid_out, self.turned_panels, out=self.dx[a:b].reshape(-1, c))
        if total is not None:
            _add_product(total, x.load(a, b).reshape(-1, c), laid_out, first)

    def store(self, totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        """The totals are turned, and their axes are (C, kh, kw, O)."""
        kh, kw, c, o = self.weight_shape
        turned_back = dweight.transpose(2, 0, 1, 3)[:, ::-1, ::-1]  # (C, kh, kw, O), as the totals are
        add_up([total.reshape(c, kh, kw, o) for total in totals], turned_back, self.scale)


class Winograd:
    """Both gradients from the transformed patches of dy, see winograd.py.

    A worker's total is its weight gradient before the inverse transform.
    """

    def __init__(self, dy: Source, weight: np.ndarray, dx: np.ndarray, scale: np.ndarray | None) -> None:
        self.dy, self.dx, self.scale, self.weight_shape = dy, dx, scale, weight.shape
        self.dy_shape = *dx.shape[:3], weight.shape[3]
        self.transformed = winograd.transform_weight(turned(weight), scale)  # of (3,3,O,C)
        self.total_shape: tuple[int, ...] = plan.PATCH * plan.PATCH, *weight.shape[2:]

    def chunks(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Sized in tiles."""
        return plan.winograd_chunks(begin, end, self.dx.shape, self.weight_shape)

    def compute(self, a: int, b: int, x: Source, total: np.ndarray | None, first: bool) -> None:
        """One transform of dy for both gradients."""
        patches = _winograd_patches(self.dy, a, b, self.dy_shape)  # (36, tiles, O)
        winograd.multiply(patches, self.transformed, self.dx[a:b])
        if total is not None:
            winograd.add_weight_product(total, x.load(a, b), patches, first)

    def store(self, totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        """The inverse transform of the sum."""
        winograd.store_turned_weight_gradient(add_up(totals, totals[0]), dweight, self.scale)


class WinogradKeepingTiles(Winograd):
    """The same for few tiles and many channels.

    The transformed tiles of x and patches of dy of all images are kept, and are multiplied at the end. They are smaller
    than the workers' totals would be.
    """

    def __init__(self, dy: Source, weight: np.ndarray, dx: np.ndarray, scale: np.ndarray | None) -> None:
        super().__init__(dy, weight, dx, scale)
        self.total_shape = (0,)
        self.tiles = plan.tiles(dx.shape)  # of an image
        self.kept_x, self.kept_dy = (
            np.empty((plan.PATCH * plan.PATCH, dx.shape[0] * self.tiles, channels), np.float32)
            for channels in weight.shape[2:]
        )

    def compute(self, a: int, b: int, x: Source, total: np.ndarray | None, first: bool) -> None:
        """The chunk's tiles and patches are kept, for `store`."""
        here = slice(a * self.tiles, b * self.tiles)
        patches = _winograd_patches(self.dy, a, b, self.dy_shape, self.kept_dy[:, here])
        winograd.multiply(patches, self.transformed, self.dx[a:b])
        if total is not None:
            winograd.transform_tiles(x.load(a, b), self.kept_x[:, here])

    def store(self, totals: Sequence[np.ndarray], dweight: np.ndarray) -> None:
        """One product of all tiles and patches, and its inverse transform."""
        winograd.weight_gradient(self.kept_x, self.kept_dy, dweight, self.scale)


def _winograd_patches(source: Source, a: int, b: int, shape: tuple, out: np.ndarray | None = None) -> np.ndarray:
    """(36, tiles, C): the transformed patches of the images [a, b) of `shape` (N,H,W,C)."""
    padded, inside = winograd.room_for_patches((b - a, *shape[1:]))
    source.load_into(inside, a, b)
    return winograd.transform_patches(padded, out)


def columns(source: Source, a: int, b: int, shape: tuple, geometry: Geometry) -> np.ndarray:
    """(m*Ho*Wo, kh*kw*C): every window of the images [a, b) as a row, in scratch memory; no copy for single pixels.

    shape   of all images, (N,H,W,C)
    """
    (kh, kw), (sh, sw), padding, (dh, dw) = geometry
    m, c = b - a, shape[3]
    if geometry[:3] == ((1, 1), (1, 1), (0, 0)):
        return source.load(a, b).reshape(-1, c)
    ho, wo = output_size(shape, *geometry)
    if padding == (0, 0):
        padded = source.load(a, b)
    else:
        padded, inside = framed((m, *shape[1:]), padding)
        source.load_into(inside, a, b)
    image, row, column, number = contiguous_strides(padded.shape)
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
