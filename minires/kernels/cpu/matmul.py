"""Matrix products in pieces of the size that BLAS multiplies fastest.

OpenBLAS first copies ("packs") both factors into an order that suits its inner loop. For small products, up to about
a million multiply-adds, it has kernels that skip the packing, and on a CPU with AVX-512 they reach 80-115 GFLOP/s a
core where the ordinary ones give 46-99. So a tall product is cut into blocks of rows. No Python loop is needed:
np.matmul over a three-dimensional view, (blocks, rows, K) @ (K, O), calls BLAS once for each block.

Source: OpenBLAS, interface/gemm.c (SMALL_MATRIX_OPT) and kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
Reading order: after workers.py. Next: convolution.py.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from minires.kernels.cpu.workers import scratch

SMALL = 1_000_000  # multiply-adds up to which OpenBLAS skips packing
CACHED = 1 << 18  # elements of a weight that stays in the second-level cache (1 MB) over all blocks of rows


@lru_cache(maxsize=4096)
def block_rows(rows: int, multiply_adds_per_row: int, least: int) -> int:
    """The largest divisor of `rows` that keeps a block small and is at least `least`; else `rows` itself."""
    for block in range(min(rows, SMALL // max(multiply_adds_per_row, 1)), least - 1, -1):
        if rows % block == 0:
            return block
    return rows


def block_columns(k: int, outputs: int) -> int:
    """How many columns of a (k, outputs) weight go into one product: all, if 8 rows of it then make a small product."""
    width = 128 if k <= 256 else 64
    if k * outputs * 8 <= SMALL or k * outputs > CACHED or k * width * 8 > SMALL or outputs % width:
        return outputs
    return width


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out (M,O) = a (M,K) @ b (K,O), all C-contiguous."""
    (rows, k), outputs = a.shape, b.shape[1]
    width = block_columns(k, outputs)
    block = block_rows(rows, k * width, least=8)
    if width == outputs:
        np.matmul(a.reshape(-1, block, k), b, out=out.reshape(-1, block, outputs))  # (blocks, block, K) @ (K, O)
        return
    np.matmul(  # (blocks, 1, block, K) @ (O/width, K, width) -> (blocks, O/width, block, width)
        a.reshape(-1, 1, block, k),
        b.reshape(k, -1, width).transpose(1, 0, 2),
        out=out.reshape(-1, block, outputs // width, width).transpose(0, 2, 1, 3),
    )


def matmul_transposed(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out (K,O) = aᵀ b for a (M,K) and b (M,O), both C-contiguous: a sum over blocks of rows."""
    (rows, k), outputs = a.shape, b.shape[1]
    block = block_rows(rows, k * outputs, least=96)  # fewer rows: adding up the blocks would cost more than it gains
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
