"""Convolution: as a matrix product over columns (im2col and cuBLAS), or without columns (convolution.cu).

    1x1, stride 1   one matrix product on the images as they are
    implicit        convolution.cu and weight_gradient.cu: no columns in memory
    columns         im2col, chunk by chunk, and cuBLAS; backwards cuBLAS and col2im: whatever the geometry

`plan` says which. The groups of a convolution are a batch of products. The weight's gradient is a sum over all
positions with a small result, so it is split into parts that are computed side by side and then added up (`split`), in
cuBLAS as a batch of products.

Reading order: after columns.cu, convolution.cu and weight_gradient.cu (convolution_async.cu is a variant). Next:
elementwise.py.
"""

from __future__ import annotations

import os

from minires.cuda import blas, precision
from minires.cuda.elementwise import accumulate, convert, scale_and_shift, turn_weight
from minires.cuda.launch import BLOCKS, THREADS, activation_of, channel_grid, program, vector_width
from minires.cuda.sums import sum_parts
from minires.device import Array, module_of
from minires.reference import Geometry, output_size

COLUMN_BYTES = 256 << 20  # of columns at a time: enough rows for cuBLAS to fill the GPU, little beside the activations
TILE_M = 128  # rows of a block's tile in convolution.cu and weight_gradient.cu
ALGORITHMS = ("auto", "implicit", "columns", "async")
algorithm = os.environ.get("MINIRES_CUDA_CONV", "auto")  # to force one of them, for measurements
if algorithm not in ALGORITHMS:
    raise ValueError(f"MINIRES_CUDA_CONV: {algorithm!r} is unknown, expected one of {', '.join(ALGORITHMS)}")


def plan(geometry: Geometry, channels: int, outputs: int, groups: int = 1) -> str:
    """ "product", "implicit" or "columns".

    The implicit kernels need one group, and channels and outputs in whole 16-byte pieces. In fp32 cuBLAS is so much
    faster than plain multiply-adds that writing columns pays (estimate); on tensor cores memory is the limit, and
    columns lose.
    `python examples/measure/gpu_check.py --plan measure` times both at the shapes of the ResNets. "async" is implicit,
    in tf32 by convolution_async.cu.
    """
    if geometry == Geometry((1, 1), (1, 1), (0, 0), geometry.dilation):
        return "product"
    piece = 8 if precision.current == "bf16" else 4
    if groups > 1 or channels % piece or outputs % piece or algorithm == "columns":
        return "columns"
    return "implicit" if algorithm in ("implicit", "async") or precision.current != "fp32" else "columns"


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Array:
    """See reference.conv2d; the result has the dtype of the activations (precision.py)."""
    geometry = Geometry(weight.shape[:2], stride, padding, dilation)
    y = forward(convert(x, precision.activation()), weight, geometry, groups)
    if bias is not None:
        scale_and_shift(y, None, bias, None, relu=False)
    return y


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    need_dx: bool,
    need_dweight: bool,
) -> tuple[Array | None, Array | None]:
    """See reference.conv2d_backward. dx has the dtype of x, dweight is float32."""
    geometry = Geometry(weight.shape[:2], stride, padding, dilation)
    x, dy, dtype = convert(x, precision.activation()), convert(dy, precision.activation()), x.dtype.name
    dweight = weight_gradient(dy, x, weight.shape, geometry, groups=groups) if need_dweight else None
    dx = input_gradient(dy, x.shape, weight, geometry, groups=groups) if need_dx else None
    return None if dx is None else convert(dx, dtype), dweight


# Contiguous arrays, x and dy in the activations' dtype. The columns of a matrix lie group by group -------------------


def _matrix(array: Array, rows: int, columns: int, groups: int) -> blas.Matrix:
    """An array of `rows` rows as a stack of matrices, the columns of each group: (rows, columns / groups) each."""
    return blas.Matrix(array, rows, columns // groups, ld=columns, stride=columns // groups)


def forward(x: Array, weight: Array, geometry: Geometry, groups: int = 1) -> Array:
    """y (N,Ho,Wo,O)."""
    channels, outputs = x.shape[3], weight.shape[3]
    weight = convert(weight, x.dtype.name)
    y = module_of(x).empty((x.shape[0], *output_size(x.shape, *geometry), outputs), dtype=x.dtype)
    how = plan(geometry, channels, outputs, groups)
    if how == "implicit" and _aligned(x, weight, y):
        _implicit(x, weight, y, geometry, add=False)
        return y
    kernel = weight.size // outputs  # K = kh*kw*C/groups
    matrix = _matrix(weight, kernel, outputs, groups)
    for a, b in _chunks(y.shape, kernel * groups, x.itemsize) if how != "product" else [(0, len(x))]:
        columns = x if how == "product" else im2col(x[a:b], geometry, groups)
        rows = y[a:b].size // outputs
        blas.product(
            _matrix(columns, rows, kernel * groups, groups),
            matrix,
            _matrix(y[a:b], rows, outputs, groups),
            count=groups,
        )
    return y


def input_gradient(
    dy: Array,
    shape: tuple[int, ...],
    weight: Array,
    geometry: Geometry,
    add_to: Array | None = None,
    groups: int = 1,
) -> Array:
    """dx of `shape` (N,H,W,C); written over `add_to`, and added to what is there, if that is given."""
    xp, channels, outputs = module_of(dy), shape[3], weight.shape[3]
    dx = xp.empty(shape, dtype=dy.dtype) if add_to is None else add_to
    how, (kh, kw) = plan(geometry, channels, outputs, groups), geometry.kernel
    back = tuple(d * (k - 1) - p for k, p, d in zip(geometry.kernel, geometry.padding, geometry.dilation))
    if how == "implicit" and geometry.stride == (1, 1) and min(back) >= 0:
        # With stride 1 the gradient is a convolution too: of dy, with the weight turned, padded to reach the borders.
        turned = turn_weight(weight, dy.dtype.name)
        if _aligned(dy, turned, dx):
            _implicit(dy, turned, dx, geometry._replace(padding=back), add=add_to is not None)
            return dx
    weight = convert(weight, dy.dtype.name)
    kernel = kh * kw * channels  # of all groups
    matrix = _matrix(weight, kernel // groups, outputs, groups).T
    if how == "product":
        rows = dy.size // outputs
        left, right = _matrix(dy, rows, outputs, groups), _matrix(dx, rows, channels, groups)
        blas.product(left, matrix, right, count=groups, accumulate=add_to is not None)
        return dx
    for a, b in _chunks(dy.shape, kernel, dy.itemsize):
        columns = xp.empty((*dy[a:b].shape[:3], groups, kh, kw, channels // groups), dtype=dy.dtype)
        rows = dy[a:b].size // outputs
        left, right = _matrix(dy[a:b], rows, outputs, groups), _matrix(columns, rows, kernel, groups)
        blas.product(left, matrix, right, count=groups)
        col2im(columns, dx[a:b], geometry, groups, add=add_to is not None)
    return dx


def weight_gradient(
    dy: Array, x: Array, shape: tuple[int, ...], geometry: Geometry, out: Array | None = None, groups: int = 1
) -> Array:
    """dweight of `shape` (kh,kw,C/groups,O) in float32, into `out` if given."""
    xp, channels, outputs = module_of(dy), x.shape[3], shape[3]
    out = xp.empty(shape, dtype="float32") if out is None else out
    how, kernel = plan(geometry, channels, outputs, groups), shape[0] * shape[1] * channels
    if how == "implicit" and _aligned(x, dy):
        tile = tile_n(outputs)  # as wide as can be: the parts fill the GPU
        positions = dy.size // outputs
        parts, rows = split(positions, -(-kernel // TILE_M) * -(-outputs // tile))
        # `out` may lie anywhere in the optimiser's buffer, and the kernel writes pairs.
        in_place = parts == 1 and _aligned(out, to=8)
        partials = out if in_place else xp.empty((parts, *shape), dtype="float32")
        _program("weight_gradient", x, tile)["weight_gradient"](
            (-(-kernel // TILE_M), -(-outputs // tile), parts), (THREADS,), x=x, dy=dy, partials=partials, parts=parts,
            positions_per_part=rows, o=outputs, **_sizes(x.shape, dy.shape, geometry),
        )  # fmt: skip
        return out if in_place else sum_parts(partials, out)
    for a, b in _chunks(dy.shape, kernel, x.itemsize) if how != "product" else [(0, len(x))]:
        columns = x if how == "product" else im2col(x[a:b], geometry, groups)
        into = out if a == 0 else xp.empty(shape, dtype="float32")
        gradient = _split_product(columns, dy[a:b], kernel // groups, outputs, into, groups)
        if a:
            accumulate(out, gradient)
    return out


def split(positions: int, tiles: int) -> tuple[int, int]:
    """(parts, positions of each): so many that all tiles together fill the GPU, each part long enough to be worth
    it."""
    parts = max(1, min(BLOCKS // tiles, positions // 512))
    rows = -(-positions // parts)
    return -(-positions // rows), rows


def tile_n(outputs: int, rows: int = BLOCKS) -> int:
    """Columns of a block's tile, 128, 64, 32 or 16: as many as there are `outputs` for; fewer where `rows` rows of such
    tiles would be too few to fill the GPU."""
    for width in (128, 64, 32):
        if width <= outputs and (rows * -(-outputs // width) >= BLOCKS // 2 or width == 32):
            return width
    return 16 if outputs <= 16 else 32


def _split_product(columns: Array, dy: Array, kernel: int, outputs: int, out: Array, groups: int) -> Array:
    """out (K, O) = columnsᵀ @ dy for each group, K = kh*kw*C/groups. All groups are one batch of products if they fill
    the GPU; else the positions are cut into parts, which are a batch for each group, and their sum."""
    positions, width = dy.size // outputs, outputs // groups
    parts, rows = split(positions, groups * -(-kernel // TILE_M) * -(-width // TILE_M))
    if parts == 1:
        a, b = _matrix(columns, positions, kernel * groups, groups).T, _matrix(dy, positions, outputs, groups)
        blas.product(a, b, _matrix(out, kernel, outputs, groups), count=groups)
        return out
    partials = module_of(dy).empty((parts, *out.shape), dtype="float32")
    full = positions // rows  # parts of full length; a shorter one may be left
    rest, size = positions - full * rows, kernel * groups  # of a row of columns
    for group in range(groups):
        a = blas.Matrix(columns, rows, kernel, group * kernel, ld=size, stride=rows * size, transposed=True)
        b = blas.Matrix(dy, rows, width, group * width, ld=outputs, stride=rows * outputs)
        c = blas.Matrix(partials, kernel, width, group * width, ld=outputs, stride=kernel * outputs)
        blas.product(a, b, c, count=full)
        if rest:
            a = a._replace(rows=rest, offset=a.offset + full * rows * size)
            b = b._replace(rows=rest, offset=b.offset + full * rows * outputs)
            blas.product(a, b, c._replace(offset=c.offset + full * kernel * outputs))
    return sum_parts(partials, out)


def _chunks(shape: tuple[int, ...], kernel: int, itemsize: int) -> list[tuple[int, int]]:
    """(begin, end) of as many images at a time as COLUMN_BYTES of columns allow, evenly; shape (N, Ho, Wo, O)."""
    n, image_bytes = shape[0], shape[1] * shape[2] * kernel * itemsize
    count = min(n, -(-n * image_bytes // COLUMN_BYTES))
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def _aligned(*arrays: Array, to: int = 16) -> bool:
    """Whether all begin at a multiple of `to` bytes; arrays of their own do, views into others may not."""
    return all(array.data.ptr % to == 0 for array in arrays)


def _sizes(x: tuple[int, ...], y: tuple[int, ...], geometry: Geometry) -> dict[str, int]:
    """The sizes that the kernels take, of images (N,H,W,C) and positions (N,Ho,Wo,...)."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    names = {"n": x[0], "h": x[1], "w": x[2], "c": x[3], "ho": y[1], "wo": y[2]}
    return names | {"kh": kh, "kw": kw, "sh": sh, "sw": sw, "ph": ph, "pw": pw, "dh": dh, "dw": dw}


def _program(file: str, x: Array, tile: int):
    kind = precision.CHOICES.index(precision.current)
    return program(file, ACTIVATION=activation_of(x), PRECISION=kind, TILE_N=tile)


def _implicit(x: Array, weight: Array, y: Array, geometry: Geometry, add: bool) -> None:
    """y (+)= the convolution of x with weight (kh,kw,C,O), by convolution.cu."""
    outputs = weight.shape[3]
    rows = -(-y.size // outputs // TILE_M)  # of tiles
    tile = tile_n(outputs, rows)
    file = "convolution_async" if algorithm == "async" and precision.current == "tf32" else "convolution"
    _program(file, x, tile)[file](
        (rows, -(-outputs // tile)), (THREADS,), x=x, weight=weight, y=y, accumulate=int(add), o=outputs,
        **_sizes(x.shape, y.shape, geometry),
    )  # fmt: skip


def im2col(x: Array, geometry: Geometry, groups: int = 1) -> Array:
    """(N,H,W,C) -> (N,Ho,Wo,groups,kh,kw,C/groups): the windows, group by group."""
    shape = (x.shape[0], *output_size(x.shape, *geometry), groups, *geometry.kernel, x.shape[3] // groups)
    columns = module_of(x).empty(shape, dtype=x.dtype)
    vector = vector_width(shape[-1], x, columns)
    rows = shape[0] * shape[1] * shape[2]
    width = columns.size // rows
    grid, block = channel_grid(rows, width, vector, 8 * BLOCKS)
    kernel = program("columns", ACTIVATION=activation_of(x), VECTOR=vector)["im2col"]
    kernel(grid, block, x=x, columns=columns, groups=groups, **_sizes(x.shape, shape, geometry))
    return columns


def col2im(columns: Array, dx: Array, geometry: Geometry, groups: int, add: bool) -> None:
    """dx (N,H,W,C) = what `im2col` would take the columns from, each pixel the sum over its windows; or dx += it."""
    vector = vector_width(columns.shape[-1], columns, dx)
    grid, block = channel_grid(dx.shape[0] * dx.shape[1] * dx.shape[2], dx.shape[3], vector, 8 * BLOCKS)
    kernel = program("columns", ACTIVATION=activation_of(dx), VECTOR=vector)["col2im"]
    kernel(
        grid,
        block,
        columns=columns,
        dx=dx,
        accumulate=int(add),
        groups=groups,
        **_sizes(dx.shape, columns.shape, geometry),
    )
