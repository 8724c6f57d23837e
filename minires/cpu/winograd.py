"""Winograd's convolution: a 3x3 convolution with a quarter of the multiplications.

A 4x4 tile of outputs of a 3x3 convolution depends on a 6x6 patch of inputs. Computed directly, a tile takes 4*4*9 = 144
multiplications. Transformed, a tile takes 36, one for each element of the transformed patch:

    y = Aᵀ [ (G w Gᵀ) * (Bᵀ d B) ] A          for patch d (6x6) of inputs, weight w (3x3), tile y (4x4) of outputs

The elementwise product is summed over channels. So for each of the 36 elements it is a matrix product over all tiles,
(tiles, C) @ (C, O), and the layer is 36 products, with 4 times fewer multiply-adds than im2col has. The transforms are
matrix products as well: with d flattened to 36 numbers, Bᵀ d B is (Bᵀ ⊗ Bᵀ) d, and Bᵀ ⊗ Bᵀ is a 36x36 matrix.

Backward transposes the three steps. The transform of dy (padded, 6x6 patches) is used twice: for dx, which is the
convolution of dy with the turned weight, and for the weight gradient, Gᵀ [ (A x Aᵀ) * (Bᵀ dy B) ] G.

With Winograd a ResNet-18 training step takes six tenths of the time (docs/fast-cpu.md). The price is rounding, because
the transforms multiply by up to 25. A float32 result is 3e-6 away from the exact one (relative, L2), im2col's 3e-7.

The sizes 4 and 6 are TILE and PATCH, see plan.py. They and the three matrices are all that another tile would change.

Source: Lavin and Gray 2015, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), F(4x4, 3x3).
Reading order: after convolution.py. Next: elementwise.py.
"""

from __future__ import annotations

import numpy as np

from minires.cpu.matmul import block_rows, panel_width, panels
from minires.cpu.plan import PATCH, TILE, even_parts, tile_grid
from minires.cpu.workers import contiguous_strides, framed, parallel, scratch

# fmt: off
BT = np.array([[4,  0, -5,  0, 1, 0],
               [0, -4, -4,  1, 1, 0],
               [0,  4, -4, -1, 1, 0],
               [0, -2, -1,  2, 1, 0],
               [0,  2, -1, -2, 1, 0],
               [0,  4,  0, -5, 0, 1]])
G = np.array([[ 1/4,     0,    0],
              [-1/6,  -1/6, -1/6],
              [-1/6,   1/6, -1/6],
              [1/24,  1/12,  1/6],
              [1/24, -1/12,  1/6],
              [   0,     0,    1]])
AT = np.array([[1, 1,  1, 1,  1, 0],
               [0, 1, -1, 2, -2, 0],
               [0, 1,  1, 4,  4, 0],
               [0, 1, -1, 8, -8, 1]])
# fmt: on
INPUT = np.kron(BT, BT).astype(np.float32)  # (36, 36): a 6x6 patch of inputs -> its transform
WEIGHT = np.kron(G, G).astype(np.float32)  # (36, 9): a 3x3 weight -> its transform
OUTPUT = np.kron(AT, AT).astype(np.float32)  # (16, 36): a transformed result -> a 4x4 tile of outputs
OUTPUT_T = np.ascontiguousarray(OUTPUT.T)  # (36, 16)
WEIGHT_T_TURNED = np.ascontiguousarray(WEIGHT.T[::-1])  # (9, 36): the nine rows reversed turn the 3x3 plane


def transform_weight(weight: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """(3,3,C,O), any strides, times scale (C,) -> (36, O/width, C, width): 36 weights in panels, see matmul.py."""
    c, outputs = weight.shape[2:]
    width = panel_width(c, outputs)
    laid_out = panels(weight, width, scale)  # (O/width, 9*C, width)
    laid_out = np.ascontiguousarray(laid_out).reshape(-1, 9, c * width)  # (O/width, 9, C*width)
    out = np.empty((outputs // width, PATCH * PATCH, c * width), np.float32)
    parallel(
        lambda a, b: np.matmul(WEIGHT, laid_out[:, :, a:b], out=out[:, :, a:b]), c * width, out.nbytes
    )  # fmt: skip
    return out.reshape(-1, PATCH * PATCH, c, width).transpose(1, 0, 2, 3)


def room_for_patches(shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A frame of zeros for `transform_patches`, and the place inside where images of `shape` (m,H,W,C) go."""
    down, across = tile_grid(shape)
    return framed(shape, (1, 1), (TILE * (down - 1) + PATCH, TILE * (across - 1) + PATCH))


def transform_patches(padded: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(m, 4*down+2, 4*across+2, C) -> (36, tiles, C): the 6x6 patches around every 4x4 tile, transformed."""
    m, c = padded.shape[0], padded.shape[3]
    down, across = ((size - PATCH) // TILE + 1 for size in padded.shape[1:3])
    image, row, column, channel = contiguous_strides(padded.shape)
    shape = (PATCH, PATCH, m, down, across, c)
    patches = np.ndarray(shape, np.float32, padded, 0, (row, column, image, TILE * row, TILE * column, channel))
    laid_out = scratch("winograd patches", shape)
    np.copyto(laid_out, patches)
    out = scratch("winograd transformed patches", (PATCH * PATCH, m * down * across, c)) if out is None else out
    _small_matmul(INPUT, laid_out.reshape(PATCH * PATCH, -1), out=out.reshape(PATCH * PATCH, -1))
    return out


def transform_tiles(images: np.ndarray, out: np.ndarray) -> None:
    """out (36, tiles, C) = the transform of the 4x4 tiles of x (m,H,W,C), for the weight gradient."""
    m, h, w, c = images.shape
    down, across = tile_grid(images.shape)
    if (TILE * down, TILE * across) != (h, w):
        whole, inside = framed(images.shape, (0, 0), (TILE * down, TILE * across))
        np.copyto(inside, images)
        images = whole
    laid_out = scratch("winograd patches", (TILE, TILE, m, down, across, c))
    np.copyto(laid_out, images.reshape(m, down, TILE, across, TILE, c).transpose(2, 4, 0, 1, 3, 5))
    _small_matmul(OUTPUT_T, laid_out.reshape(TILE * TILE, -1), out=out.reshape(PATCH * PATCH, -1))


def add_weight_product(total: np.ndarray, images: np.ndarray, patches: np.ndarray, first: bool) -> None:
    """total (36,C,O) += tilesᵀ patches, for the 4x4 tiles of x (m,H,W,C) and the transformed patches of dy."""
    transformed = scratch("winograd products", (*patches.shape[:2], images.shape[3]))
    transform_tiles(images, transformed)
    product = total if first else scratch("weight gradient", total.shape)
    np.matmul(transformed.transpose(0, 2, 1), patches, out=product)
    if not first:
        np.add(total, product, out=total)


def weight_gradient(tiles: np.ndarray, patches: np.ndarray, dweight: np.ndarray, scale: np.ndarray | None) -> None:
    """dweight (3,3,C,O), times scale (O,), of the transformed tiles (36,T,C) of x and patches (36,T,O) of dy.

    The workers share C instead of the images. So there is no sum over workers, and each block's product is still cached
    when it is transformed.
    """

    def part(begin: int, end: int) -> None:
        for a, b in even_parts(begin, end, PRODUCT_BYTES // (4 * PATCH * PATCH * patches.shape[2])):
            product = scratch("winograd products", (PATCH * PATCH, b - a, patches.shape[2]))
            np.matmul(tiles[:, :, a:b].transpose(0, 2, 1), patches, out=product)
            _store_turned(product, dweight[:, :, a:b], scale)

    parallel(part, tiles.shape[2])


def store_turned_weight_gradient(total: np.ndarray, dweight: np.ndarray, scale: np.ndarray | None) -> None:
    """dweight (3,3,C,O) = the inverse transform of total (36,C,O), turned by 180° in the plane, times scale (O,)."""
    parallel(lambda a, b: _store_turned(total[:, a:b], dweight[:, :, a:b], scale), total.shape[1], total.nbytes)


def _store_turned(total: np.ndarray, dweight: np.ndarray, scale: np.ndarray | None) -> None:
    out = dweight.reshape(9, *dweight.shape[2:])
    np.matmul(WEIGHT_T_TURNED, total.reshape(PATCH * PATCH, -1), out=out.reshape(9, -1))
    if scale is not None:
        np.multiply(out, scale, out=out)


def multiply(patches: np.ndarray, weight: np.ndarray, y: np.ndarray) -> None:
    """y (m,H,W,O) = the inverse transform of patches (36,tiles,C) @ weight (36,O/width,C,width)."""
    m, h, w, outputs = y.shape
    down, across = tile_grid(y.shape)
    tiles, c = patches.shape[1:]
    width = weight.shape[3]
    products = scratch("winograd products", (PATCH * PATCH, tiles, outputs))
    block = block_rows(tiles, c * width)
    np.matmul(  # (36, blocks, 1, block, C) @ (36, 1, O/width, C, width) -> (36, blocks, O/width, block, width)
        patches.reshape(PATCH * PATCH, -1, 1, block, c),
        weight[:, None],
        out=products.reshape(PATCH * PATCH, -1, block, outputs // width, width).transpose(0, 1, 3, 2, 4),
    )
    result = scratch("winograd patches", (TILE * TILE, tiles * outputs))
    _small_matmul(OUTPUT, products.reshape(PATCH * PATCH, -1), out=result)
    result = result.reshape(TILE, TILE, m, down, across, outputs)
    whole = (TILE * down, TILE * across) == (h, w)
    target = y if whole else scratch("winograd output", (m, TILE * down, TILE * across, outputs))
    np.copyto(target.reshape(m, down, TILE, across, TILE, outputs), result.transpose(2, 3, 0, 4, 1, 5))
    if not whole:
        np.copyto(y, target[:, :h, :w])


PRODUCT_BYTES = 4 << 20  # of a block in weight_gradient
COLUMNS = 256  # of one product: 36 * 36 * 256 multiply-adds are few enough for BLAS's unpacked kernels


def _small_matmul(small: np.ndarray, wide: np.ndarray, out: np.ndarray) -> None:
    """out (p,n) = small (p,q) @ wide (q,n), 256 columns at a time."""
    (p, q), n = small.shape, wide.shape[1]
    if n % COLUMNS:
        np.matmul(small, wide, out=out)
        return
    blocks = wide.reshape(q, -1, COLUMNS).transpose(1, 0, 2)  # (blocks, q, 256)
    np.matmul(small, blocks, out=out.reshape(p, -1, COLUMNS).transpose(1, 0, 2))
