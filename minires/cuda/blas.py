"""Matrix products by cuBLAS, called through ctypes.

CuPy has its own binding, but it sets the stream again in every call, which a CUDA graph capture refuses, and it offers
neither accumulation into C, nor free leading dimensions, nor batches of TF32 and bfloat16. One function of cuBLAS does
all of that: cublasGemmStridedBatchedEx. It takes column-major matrices; a row-major matrix read by columns is its
transpose, so C = A @ B is asked for as Cᵀ = Bᵀ @ Aᵀ: the factors change places, nothing is moved.

The handle has its own workspace, because cuBLAS would otherwise allocate one, in the middle of a capture; and with a
fixed workspace on one stream its results are the same from run to run.

Source: the cuBLAS documentation, on cublasGemmStridedBatchedEx, cublasSetWorkspace and reproducibility.
Reading order: after batch_norm.py. Next: columns.cu and precision.py.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from minires.cuda import precision
from minires.device import Array, device_of

WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends for Hopper
TYPES = {"float32": 0, "bfloat16": 14}  # cudaDataType_t
COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 68, 77  # cublasComputeType_t
DEFAULT_ALGORITHM = -1
STATUS = {
    1: "not initialised", 3: "out of memory", 7: "invalid value", 8: "architecture mismatch", 13: "execution failed",
    14: "internal error", 15: "not supported",
}  # fmt: skip  # cublasStatus_t


class Matrix(NamedTuple):
    """A row-major matrix, or a stack of them, inside an array.

    array      on the GPU, float32 or bfloat16
    rows, columns
    offset     of its first element in the array's memory, in elements
    ld         elements from one row to the next (default: columns)
    stride     elements from one matrix of the stack to the next
    transposed  the product takes its transpose, of (columns, rows)
    """

    array: Array
    rows: int
    columns: int
    offset: int = 0
    ld: int = 0
    stride: int = 0
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """As the product takes it."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    @property
    def T(self) -> Matrix:
        """The transpose; nothing is moved."""
        return self._replace(transposed=not self.transposed)

    def check(self, name: str, count: int) -> None:
        """Raise `TypeError` or `ValueError` if it is no matrix, or reaches beyond the array."""
        if device_of(self.array) != "cuda" or self.array.dtype.name not in TYPES or not self.array.flags.c_contiguous:
            kind = f"{self.array.dtype} on {device_of(self.array)!r}"
            raise TypeError(f"matmul: {name} is {kind}, expected contiguous float32 or bfloat16 on 'cuda'")
        last = self.offset + (count - 1) * self.stride + (self.rows - 1) * (self.ld or self.columns) + self.columns
        if self.offset < 0 or (self.ld and self.ld < self.columns) or min(self.rows, self.columns) < 1:
            raise ValueError(f"matmul: {name} of {self.rows}x{self.columns}, ld {self.ld}, offset {self.offset}")
        if last > self.array.size:
            raise ValueError(f"matmul: {name} reaches to element {last} of an array of {self.array.size}")


def product(a: Matrix, b: Matrix, c: Matrix, **options) -> None:
    """`matmul` in the precision that is in use."""
    matmul(a, b, c, tf32=precision.current != "fp32", **options)


def matmul(a: Matrix, b: Matrix, c: Matrix, *, count: int = 1, accumulate: bool = False, tf32: bool = False) -> None:
    """c = a @ b, or c += a @ b; for each of `count` matrices in stacks. On the current stream, without waiting.

    a and b are both float32 or both bfloat16, c either; sums are taken in float32. With `tf32` the tensor cores
    multiply float32 factors rounded to 10 bits of mantissa. Raises `TypeError` and `ValueError` for matrices that do
    not fit, and `RuntimeError` when cuBLAS fails.
    """
    for name, m in (("a", a), ("b", b), ("c", c)):
        m.check(name, count)
    if c.transposed or a.shape[1] != b.shape[0] or c.shape != (a.shape[0], b.shape[1]):
        raise ValueError(f"matmul: {a.shape} @ {b.shape} = {c.shape} do not fit")
    if a.array.dtype != b.array.dtype:
        raise TypeError(f"matmul: factors of {a.array.dtype} and {b.array.dtype}")
    compute = COMPUTE_32F_FAST_TF32 if tf32 and a.array.dtype == np.float32 else COMPUTE_32F
    _open().gemm(a, b, c, count, accumulate, compute)


class Handle:
    """A cuBLAS handle with its workspace, which follows CuPy's current stream."""

    def __init__(self, functions: Any):
        import cupy

        self.functions, self.handle, self.stream = functions, ctypes.c_void_p(), None
        self._check("cublasCreate_v2", functions.cublasCreate_v2(ctypes.byref(self.handle)))
        # From the device itself, not from whatever pool is in use: it outlives them all.
        with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
            self.workspace = cupy.empty(WORKSPACE_BYTES, dtype=cupy.uint8)
        self.scalars = (ctypes.c_float * 2)(0.0, 1.0)
        address = ctypes.addressof(self.scalars)
        self.zero, self.one = ctypes.c_void_p(address), ctypes.c_void_p(address + 4)

    def use(self, stream: int) -> None:
        """Work on `stream` from now on. In this order: setting the stream forgets the workspace."""
        self.call("cublasSetStream_v2", ctypes.c_void_p(stream))
        address, size = ctypes.c_void_p(self.workspace.data.ptr), ctypes.c_size_t(WORKSPACE_BYTES)
        self.call("cublasSetWorkspace_v2", address, size)
        self.stream = stream

    def gemm(self, a: Matrix, b: Matrix, c: Matrix, count: int, accumulate: bool, compute: int) -> None:
        """Row-major c = a @ b as column-major cᵀ = bᵀ @ aᵀ: b comes first."""
        import cupy

        stream = cupy.cuda.get_current_stream().ptr
        if stream != self.stream:
            self.use(stream)
        (m, k), n = a.shape, b.shape[1]
        self.call(
            "cublasGemmStridedBatchedEx", int(b.transposed), int(a.transposed), n, m, k,
            self.one, *_described(b), *_described(a), self.one if accumulate else self.zero, *_described(c),
            count, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of cuBLAS with the handle. Raises `RuntimeError` for a status that is no success."""
        self._check(name, getattr(self.functions, name)(self.handle, *arguments))

    @staticmethod
    def _check(name: str, status: int) -> None:
        if status:
            raise RuntimeError(f"{name} failed with status {status} ({STATUS.get(status, 'see cublasStatus_t')})")


def _described(m: Matrix) -> tuple:
    """address, type, leading dimension, stride."""
    address = ctypes.c_void_p(m.array.data.ptr + m.offset * m.array.itemsize)
    return address, TYPES[m.array.dtype.name], m.ld or m.columns, m.stride


_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
_MATRIX = [_POINTER, _INT, _INT, _LONG]
SIGNATURES = {
    "cublasCreate_v2": [_POINTER],
    "cublasDestroy_v2": [_POINTER],
    "cublasGetVersion_v2": [_POINTER, _POINTER],
    "cublasSetStream_v2": [_POINTER, _POINTER],
    "cublasSetWorkspace_v2": [_POINTER, _POINTER, ctypes.c_size_t],
    "cublasGemmStridedBatchedEx": [
        _POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER, *_MATRIX, *_MATRIX, _POINTER, *_MATRIX, _INT, _INT, _INT,
    ],
}  # fmt: skip
NAMES = ("libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "cublas64_13.dll", "cublas64_12.dll")


def library() -> Any:
    """The cuBLAS library with its functions declared. Raises `RuntimeError` saying how to get it."""
    found = _find()
    for name, signature in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = signature, _INT
    return found


def _find() -> ctypes.CDLL:
    try:
        # Comes with CuPy 14, and knows where pip and conda put NVIDIA's libraries.
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:  # not installed, or it found none (it has an exception class of its own)
        reason = error
    for name in NAMES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    text = " ".join(f"{type(reason).__name__}: {reason}".split())
    raise RuntimeError(
        f"the cuBLAS library cannot be loaded ({text}); install it with: pip install nvidia-cublas-cu12, or, for "
        "CUDA 13, pip install 'nvidia-cublas==13.*'"
    ) from reason


def version() -> str:
    """The version of cuBLAS, such as "13.0.2"."""
    number = ctypes.c_int()
    handle = _open()
    handle.call("cublasGetVersion_v2", ctypes.byref(number))
    major, rest = divmod(number.value, 10_000)
    return f"{major}.{rest // 100}.{rest % 100}"


_handle: Handle | None = None


def _open() -> Handle:
    global _handle
    if _handle is None:
        _handle = Handle(library())
    return _handle


def prepare(stream: int) -> None:
    """Make the handle, on `stream`: before a capture, in which neither can be done."""
    _open().use(stream)


def close() -> None:
    """Forget the handle and free its workspace."""
    global _handle
    if _handle is not None:
        _handle.functions.cublasDestroy_v2(_handle.handle)
    _handle = None


def round_to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded as the tensor cores see it, to 10 bits of mantissa; for estimates of the error, and the
    simulator."""
    x = np.ascontiguousarray(x, np.float32)
    rounded = ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(x), x, rounded)
