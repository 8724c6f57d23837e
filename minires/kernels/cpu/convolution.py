"""Convolution in cache-sized chunks.

The reference lays out the columns of the whole batch: 9 times the input for a 3x3 window, written to memory and
read back by the matrix product. Here each worker goes through its images a few at a time, so that the columns
(4 MB at most) are still in its cache when they are multiplied: laying out one layer's columns takes 2.8 ms instead
of 20-47. They are copied by one call, from a view in which every window is a row (as_strided).

    forward           columns(x) @ weight                              per chunk
    weight gradient   columns(x)ᵀ @ dy                                 summed over chunks and workers
    input gradient    stride 1:  columns(dy) @ weight turned by 180°   a convolution again: no col2im
                      else:      col2im(dy @ weightᵀ)

For stride 1 the columns of dy serve both gradients: xᵀ @ columns(dy) holds the weight gradient too, turned.
Most 3x3 layers go to winograd.py instead; plan.py decides.

Reading order: after matmul.py. Next: winograd.py.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.kernels import reference
from minires.kernels.cpu import plan, winograd
from minires.kernels.cpu.matmul import matmul, matmul_transposed
from minires.kernels.cpu.workers import parallel, scratch, zero_bordered
from minires.kernels.geometry import output_size

Two = tuple[int, int]


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
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    if plan.use_winograd(x.shape, weight.shape, stride, padding, dilation):
        y = winograd.conv2d(x, weight)
    else:
        y = _direct(x, weight, stride, padding, dilation)
    if bias is not None:
        y += bias
    return y


def _direct(x: np.ndarray, weight: np.ndarray, stride: Two, padding: Two, dilation: Two) -> np.ndarray:
    kernel, outputs = weight.shape[:2], weight.shape[3]
    y = np.empty((x.shape[0], *output_size(x.shape, kernel, stride, padding, dilation), outputs), np.float32)
    matrix = weight.reshape(-1, outputs)  # (kh*kw*C, O)

    def part(begin: int, end: int) -> None:
        for a, b in plan.chunks(begin, end, y.shape[1] * y.shape[2], max(matrix.shape)):
            matmul(columns(x[a:b], kernel, stride, padding, dilation), matrix, out=y[a:b].reshape(-1, outputs))

    parallel(part, x.shape[0])
    return y


def columns(x: np.ndarray, kernel: Two, stride: Two, padding: Two, dilation: Two) -> np.ndarray:
    """(m,H,W,C) -> (m*Ho*Wo, kh*kw*C): every window as a row, in scratch memory; x itself where that is the same."""
    m, _, _, c = x.shape
    if kernel == stride == (1, 1) and padding == (0, 0):
        return x.reshape(-1, c)
    ho, wo = output_size(x.shape, kernel, stride, padding, dilation)
    padded = x if padding == (0, 0) else zero_bordered(x, padding)
    image, row, column, _ = padded.strides
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    windows = as_strided(
        padded,
        (m, ho, wo, kh, kw, c),
        (image, sh * row, sw * column, dh * row, dw * column, padded.itemsize),
        writeable=False,
    )
    laid_out = scratch("columns", (m, ho, wo, kh, kw, c))
    if dw == 1:  # a row of the window is one run of memory: copied as kw*C numbers at a time
        windows = as_strided(windows, (m, ho, wo, kh, kw * c), (*windows.strides[:4], padded.itemsize), writeable=False)
        np.copyto(laid_out.reshape(m, ho, wo, kh, kw * c), windows)
    else:
        np.copyto(laid_out, windows)
    return laid_out.reshape(m * ho * wo, kh * kw * c)


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
        return reference.conv2d_backward(
            dy, x, weight, stride, padding, dilation, groups, need_dx, need_dweight
        )  # fmt: skip
    dy, x, weight = np.ascontiguousarray(dy), np.ascontiguousarray(x), np.ascontiguousarray(weight)
    if need_dx and plan.use_winograd(x.shape, weight.shape, stride, padding, dilation):
        return winograd.conv2d_backward(dy, x, weight, need_dweight)
    kernel = weight.shape[:2]
    turned_padding = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
    if need_dx and kernel != (1, 1) and stride == dilation == (1, 1) and min(turned_padding) >= 0:
        return _backward_stride_1(dy, x, weight, turned_padding, need_dweight)
    return _backward_any_stride(dy, x, weight, stride, padding, dilation, need_dx, need_dweight)


def _backward_stride_1(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, turned_padding: Two, need_dweight: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    kh, kw, c, o = weight.shape
    turned = turn(weight).reshape(kh * kw * o, c)
    dx = np.empty_like(x)

    def part(begin: int, end: int) -> np.ndarray | None:
        total = None
        for a, b in plan.chunks(begin, end, x.shape[1] * x.shape[2], max(turned.shape), backward=True):
            laid_out = columns(dy[a:b], (kh, kw), (1, 1), turned_padding, (1, 1))  # (m*H*W, kh*kw*O)
            matmul(laid_out, turned, out=dx[a:b].reshape(-1, c))
            if need_dweight:
                total = _add_product(total, x[a:b].reshape(-1, c), laid_out)  # (C, kh*kw*O)
        return total

    totals = parallel(part, x.shape[0])
    if not need_dweight:
        return dx, None
    dweight = add_up(totals).reshape(c, kh, kw, o)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    return dx, np.ascontiguousarray(dweight)


def _backward_any_stride(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Two,
    padding: Two,
    dilation: Two,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    kh, kw, c, o = weight.shape
    dx = np.empty_like(x) if need_dx else None
    transposed = transpose(weight.reshape(-1, o)) if need_dx else None  # (O, kh*kw*C)

    def part(begin: int, end: int) -> np.ndarray | None:
        total = None
        for a, b in plan.chunks(begin, end, dy.shape[1] * dy.shape[2], max(kh * kw * c, o), backward=True):
            dy_matrix = dy[a:b].reshape(-1, o)  # (m*Ho*Wo, O)
            if need_dweight:
                laid_out = columns(x[a:b], (kh, kw), stride, padding, dilation)
                total = _add_product(total, laid_out, dy_matrix)  # (kh*kw*C, O)
            if need_dx and (kh, kw) == stride == (1, 1) and padding == (0, 0):
                matmul(dy_matrix, transposed, out=dx[a:b].reshape(-1, c))
            elif need_dx:
                dcolumns = scratch("columns", (dy_matrix.shape[0], kh * kw * c))
                matmul(dy_matrix, transposed, out=dcolumns)
                _col2im(dcolumns.reshape(*dy[a:b].shape[:3], kh, kw, c), dx[a:b], stride, padding, dilation)
        return total

    totals = parallel(part, x.shape[0])
    return dx, add_up(totals).reshape(weight.shape) if need_dweight else None


def _col2im(dcolumns: np.ndarray, dx: np.ndarray, stride: Two, padding: Two, dilation: Two) -> None:
    """dx (m,H,W,C) = reference.col2im(dcolumns), with the padded sum in scratch memory."""
    m, h, w, c = dx.shape
    ph, pw = padding
    padded = scratch("col2im", (m, h + 2 * ph, w + 2 * pw, c))
    padded.fill(0)
    for u, v, rows, cols in reference.window_slices(dcolumns.shape[1:3], dcolumns.shape[3:5], stride, dilation):
        target = padded[:, rows, cols]
        np.add(target, dcolumns[:, :, :, u, v], out=target)
    np.copyto(dx, padded[:, ph : ph + h, pw : pw + w])


def _add_product(total: np.ndarray | None, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """total + aᵀ b, in place; the first product makes the total."""
    if total is None:
        total = np.empty((a.shape[1], b.shape[1]), np.float32)
        matmul_transposed(a, b, out=total)
        return total
    product = scratch("weight gradient", total.shape)
    matmul_transposed(a, b, out=product)
    return np.add(total, product, out=total)


def add_up(totals: list[np.ndarray]) -> np.ndarray:
    """The sum of the workers' arrays, in the order of the workers."""
    total = totals[0]
    flat = total.reshape(-1)
    for other in totals[1:]:
        other_flat = other.reshape(-1)

        def part(a: int, b: int, other_flat: np.ndarray = other_flat) -> None:
            np.add(flat[a:b], other_flat[a:b], out=flat[a:b])

        parallel(part, flat.size)
    return total


def turn(weight: np.ndarray) -> np.ndarray:
    """(kh,kw,C,O) -> (kh,kw,O,C), turned by 180° in the plane: the weight of the convolution that gives dx."""
    turned = np.empty((*weight.shape[:2], weight.shape[3], weight.shape[2]), np.float32)
    source = weight[::-1, ::-1].transpose(0, 1, 3, 2)
    parallel(lambda a, b: np.copyto(turned[:, :, a:b], source[:, :, a:b]), weight.shape[3])
    return turned


def transpose(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy of the transpose: BLAS's unpacked kernels do not take a transposed view."""
    out = np.empty(matrix.shape[::-1], np.float32)
    parallel(lambda a, b: np.copyto(out[:, a:b], matrix[a:b].T), matrix.shape[0])
    return out
