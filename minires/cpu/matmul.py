"""Matrix products in pieces of the size that BLAS multiplies fastest.

OpenBLAS first copies ("packs") both factors into an order that suits its inner loop. For small products, up to about
a million multiply-adds, it has kernels that skip the packing. On a CPU with AVX-512 they are up to 1.7 times as fast
(docs/fast-cpu.md has the speeds), if what they read lies close together. So the weight is packed once by us,

    weight (K,O)  ->  panels (O/64, K, 64)     64 columns each, one panel after the other

and a tall input is cut into blocks of 8 rows or more. Each small product is a block times a panel, (rows, K) @ (K, 64).
Without panels the rows of 64 columns lie 4*O bytes apart; for O = 1024 they all compete for one place of the first
cache, and what was gained is lost. No Python loop is needed: np.matmul over a four-dimensional view,
(blocks, 1, rows, K) @ (panels, K, 64), calls BLAS once for each product.

Source: OpenBLAS, interface/gemm.c (SMALL_MATRIX_OPT) and kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
Reading order: after workers.py. Next: plan.py.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from minires.cpu.workers import parallel, scratch

SMALL = 1_000_000  # multiply-adds up to which OpenBLAS skips packing
BLOCK = 1 << 16  # numbers of a block of rows, at most: it stays in the second-level cache while it meets all panels
CLOSE = 256  # columns of a weight up to which its rows are close enough together without a copy
LEAST_ROWS = 8  # below, a product is too small for the work of calling it


@lru_cache(maxsize=4096)
def block_rows(rows: int, multiply_adds_per_row: int, least: int = LEAST_ROWS, most: int | None = None) -> int:
    """The largest divisor of `rows` in least..most that keeps a block small; `rows` itself where there is none."""
    for block in range(min(rows, most or rows, SMALL // max(multiply_adds_per_row, 1)), least - 1, -1):
        if rows % block == 0:
            return block
    return rows


def panel_width(k: int, outputs: int) -> int:
    """How many columns of a (k, outputs) weight make a panel; all of them where panels would not be small products."""
    for width in (64, 32):
        if outputs % width == 0 and LEAST_ROWS * k * width <= SMALL:
            return width
    return outputs


def panels(weight: np.ndarray, width: int, scale: np.ndarray | None = None) -> np.ndarray:
    """(..., I, O) -> (O/width, K, width), K being the product of all axes but the last.

    The result is a view where no copy is needed. scale (I,), if any, is multiplied in.
    """
    *leading, outputs = weight.shape
    source = np.moveaxis(weight.reshape(*leading, -1, width), -2, 0)  # (O/width, ..., I, width), a view
    rows_are_close = weight.flags.c_contiguous and outputs <= CLOSE
    if scale is None and (rows_are_close or source.flags.c_contiguous):
        return source.reshape(-1, math.prod(leading), width)
    laid_out = np.empty(source.shape, np.float32)

    def part(a: int, b: int) -> None:
        if scale is None:
            np.copyto(laid_out[a:b], source[a:b])
        else:
            np.multiply(source[a:b], scale[:, None], out=laid_out[a:b])

    parallel(part, outputs // width, weight.nbytes)
    return laid_out.reshape(-1, math.prod(leading), width)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out (M,O) = a (M,K) @ the weight whose panels are b (O/width, K, width); a and out are C-contiguous."""
    rows, k = a.shape
    width = b.shape[2]
    block = block_rows(rows, k * width, most=BLOCK // k)
    np.matmul(  # (blocks, 1, block, K) @ (O/width, K, width) -> (blocks, O/width, block, width)
        a.reshape(-1, 1, block, k), b, out=out.reshape(-1, block, b.shape[0], width).transpose(0, 2, 1, 3)
    )


def matmul_transposed(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out (K,O) = aᵀ b for a (M,K) and b (M,O), both C-contiguous: a sum over blocks of rows."""
    (rows, k), outputs = a.shape, b.shape[1]
    block = block_rows(rows, k * outputs, least=96)  # fewer: adding up the blocks would cost more than it gains
    blocks = rows // block
    if blocks == 1:
        np.matmul(a.T, b, out=out)
        return
    partial = scratch("matmul partial sums", (blocks, k, outputs))
    np.matmul(a.reshape(blocks, block, k).transpose(0, 2, 1), b.reshape(blocks, block, outputs), out=partial)
    np.matmul(ones(blocks), partial.reshape(blocks, -1), out=out.reshape(-1))  # the sum over blocks


_ONES = np.ones(1 << 14, np.float32)


def ones(n: int) -> np.ndarray:
    """(n,) ones: ones @ matrix is the sum of its rows, 20 times faster than matrix.sum(axis=0) for rows of 16."""
    return _ONES[:n] if n <= _ONES.size else np.ones(n, np.float32)
