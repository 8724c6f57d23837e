"""The cuBLAS functions that blas.py calls, in NumPy, as NVIDIA documents them: column-major matrices in raw memory.

    C (m x n) = alpha * op(A) (m x k) @ op(B) (k x n) + beta * C,   for each of `count` matrices

The matrices are `stride` elements apart. A matrix is stored column by column, its columns `ld` elements apart; op
transposes on request. The checks of cuBLAS are made (a leading dimension must be at least the number of rows). One more
check is made, which cuBLAS lacks: all of the memory must belong to arrays on the device.

Reading order: after fake_cupy.py.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.cuda import blas


class FakeCublas:
    """Stands in for the ctypes library; every function returns a status, 0 for success."""

    def __init__(self) -> None:
        self.gpu = sys.modules["cupy"]._gpu
        self.stream: int | None = None
        self.workspace_set = False

    def cublasCreate_v2(self, handle: Any) -> int:
        handle._obj.value = 1
        return 0

    def cublasGetVersion_v2(self, handle: Any, version: Any) -> int:
        version._obj.value = 130002
        return 0

    def cublasDestroy_v2(self, handle: Any) -> int:
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self.stream, self.workspace_set = stream.value or 0, False  # setting a stream resets the workspace
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, address: Any, size: Any) -> int:
        self.workspace_set = bool(address.value) and size.value >= 1 << 20
        return 0

    def cublasGemmStridedBatchedEx(
        self, handle, transpose_a, transpose_b, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b,
        beta, c, c_type, ldc, stride_c, count, compute, algorithm,
    ) -> int:  # fmt: skip
        values = [getattr(v, "value", v) for v in (a, b, c)]
        if self.stream != self.gpu.current_stream.ptr or not self.workspace_set:
            return 1  # not initialised: in a capture the real one would allocate its own workspace
        if lda < (k if transpose_a else m) or ldb < (n if transpose_b else k) or ldc < m or min(m, n, k, count) < 1:
            return 7  # invalid value
        if (a_type, b_type) not in ((0, 0), (14, 14)) or c_type not in (0, 14) or compute not in (68, 77):
            return 15  # not supported
        if a_type == 14 and compute == 77:
            return 15
        beta_value = ctypes.cast(beta, ctypes.POINTER(ctypes.c_float))[0]
        alpha_value = ctypes.cast(alpha, ctypes.POINTER(ctypes.c_float))[0]
        left = self._matrices(values[0], (k, m) if transpose_a else (m, k), lda, stride_a, count, a_type)
        right = self._matrices(values[1], (n, k) if transpose_b else (k, n), ldb, stride_b, count, b_type)
        out = self._matrices(values[2], (m, n), ldc, stride_c, count, c_type)

        def run() -> None:
            x, y = (v.astype(np.float32) for v in (left, right))
            if compute == 77:
                x, y = blas.round_to_tf32(x), blas.round_to_tf32(y)
            x = x.swapaxes(1, 2) if transpose_a else x
            y = y.swapaxes(1, 2) if transpose_b else y
            product = alpha_value * (x @ y)
            out[...] = product + beta_value * out.astype(np.float32) if beta_value else product

        self.gpu.run("gemm", run)
        return 0

    def _matrices(self, address: int, shape: tuple, ld: int, stride: int, count: int, kind: int) -> np.ndarray:
        """A (count, rows, columns) view of raw memory, Fortran-ordered."""
        dtype = np.dtype(np.float32) if kind == 0 else np.dtype("bfloat16")
        length = (count - 1) * stride + (shape[1] - 1) * ld + shape[0]
        flat = self.gpu.at(address, length * dtype.itemsize).view(dtype)
        strides = (stride * dtype.itemsize, dtype.itemsize, ld * dtype.itemsize)
        return as_strided(flat, (count, *shape), strides)
