"""The cuBLAS binding asks for what it means: against a cuBLAS in NumPy that works on raw column-major memory."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.cuda import blas
from minires.testing import seeds
from tests import simulator

sides = st.integers(1, 7)


def random(seed, *shape):
    """Small integers: products are exact in float32, TF32 and bfloat16."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
@given(m=sides, n=sides, k=sides, seed=seeds(), ta=st.booleans(), tb=st.booleans(), more=st.booleans())
def test_matmul(m, n, k, seed, ta, tb, more):
    with simulator.gpu():
        import cupy

        a, b, c = random(seed, m, k), random(seed + 1, k, n), random(seed + 2, m, n)
        out = cupy.asarray(c)
        left = (
            blas.Matrix(cupy.asarray(np.ascontiguousarray(a.T)), k, m).T if ta else blas.Matrix(cupy.asarray(a), m, k)
        )
        right = (
            blas.Matrix(cupy.asarray(np.ascontiguousarray(b.T)), n, k).T if tb else blas.Matrix(cupy.asarray(b), k, n)
        )
        blas.matmul(left, right, blas.Matrix(out, m, n), accumulate=more)
        np.testing.assert_array_equal(out.get(), a @ b + (c if more else 0))


@pytest.mark.parametrize("tf32", [False, True])
def test_stacks_offsets_and_leading_dimensions(any_gpu, tf32):
    """Three products of matrices that lie inside larger ones; what lies between is left alone."""
    import cupy

    a, b = random(0, 3, 4, 8), random(1, 3, 5, 6)
    c = np.full((3, 4, 9), 7, np.float32)
    device_a, device_b, device_c = map(cupy.asarray, (a, b, c))
    blas.matmul(
        blas.Matrix(device_a, 4, 5, offset=2, ld=8, stride=32),  # columns 2 to 6 of each
        blas.Matrix(device_b, 5, 6, stride=30),
        blas.Matrix(device_c, 4, 6, offset=1, ld=9, stride=36),
        count=3,
        tf32=tf32,
    )
    c[:, :, 1:7] = a[:, :, 2:7] @ b
    np.testing.assert_array_equal(device_c.get(), c)


def test_bfloat16_in_float32_out(any_gpu):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    import cupy

    a, b = (random(i, 4, 4).astype(ml_dtypes.bfloat16) for i in range(2))
    out = cupy.empty((4, 4), dtype="float32")
    blas.matmul(*(blas.Matrix(cupy.asarray(m), 4, 4) for m in (a, b)), blas.Matrix(out, 4, 4))
    np.testing.assert_array_equal(out.get(), a.astype(np.float32) @ b.astype(np.float32))


def test_tf32_rounds_the_factors(any_gpu):
    import cupy

    x = np.full((1, 1), 1 + 2**-11 + 2**-12, np.float32)  # between 1 and the next TF32 number, 1 + 2**-10
    rounded = {1 + 2**-10}
    if not isinstance(any_gpu, simulator.Gpu):  # real ones may cut off, or take so small a product in float32
        rounded |= {1, float(x[0, 0])}
    for tf32, expected in ((False, {float(x[0, 0])}), (True, rounded)):
        out = cupy.empty((1, 1), dtype="float32")
        one = cupy.ones((1, 1), dtype="float32")
        blas.matmul(blas.Matrix(cupy.asarray(x), 1, 1), blas.Matrix(one, 1, 1), blas.Matrix(out, 1, 1), tf32=tf32)
        assert float(out.get()[0, 0]) in expected


def test_the_workspace_is_set_after_the_stream(gpu):
    """Setting the stream takes the workspace away, so each change of stream sets both: the fake refuses a product
    without."""
    import cupy

    one = blas.Matrix(cupy.ones((1, 1), dtype="float32"), 1, 1)
    out = blas.Matrix(cupy.empty((1, 1), dtype="float32"), 1, 1)
    for stream in (cupy.cuda.Stream(), cupy.cuda.Stream.null):
        with stream:
            blas.matmul(one, one, out)
            assert out.array.get().tolist() == [[1]]


def test_errors(gpu):
    import cupy

    x = cupy.zeros((4, 4), dtype="float32")
    square = blas.Matrix(x, 4, 4)
    for arguments, kind, message in [
        ((square, blas.Matrix(x, 2, 4), square), ValueError, r"\(4, 4\) @ \(2, 4\) = \(4, 4\) do not fit"),
        ((square, square, square.T), ValueError, "do not fit"),
        ((blas.Matrix(x, 5, 4), square, square), ValueError, "a reaches to element 20 of an array of 16"),
        ((square, blas.Matrix(x, 4, 4, offset=1), square), ValueError, "b reaches to element 17"),
        ((square, square, blas.Matrix(x, 4, 4, ld=3)), ValueError, "c of 4x4, ld 3"),
        ((blas.Matrix(np.zeros((4, 4), np.float32), 4, 4), square, square), TypeError, "a is float32 on 'cpu'"),
        ((blas.Matrix(x.astype("int32"), 4, 4), square, square), TypeError, "a is int32 on 'cuda'"),
    ]:
        with pytest.raises(kind, match=message):
            blas.matmul(*arguments)


def test_a_failing_cublas_is_named(gpu, monkeypatch):
    import cupy

    x = blas.Matrix(cupy.zeros((2, 2), dtype="float32"), 2, 2)
    blas.matmul(x, x, x)
    monkeypatch.setattr(type(blas._handle.functions), "cublasGemmStridedBatchedEx", lambda *arguments: 13)
    with pytest.raises(RuntimeError, match=r"failed with status 13 \(execution failed\)"):
        blas.matmul(x, x, x)


def test_without_the_library_it_says_why_and_how_to_get_it(monkeypatch):
    def fails(name):
        raise OSError(f"no {name}")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=fails))
    monkeypatch.setattr(ctypes, "CDLL", fails)
    with pytest.raises(
        RuntimeError, match=r"cannot be loaded \(OSError: no cublas\); .*pip install nvidia-cublas-cu12"
    ) as e:
        blas.library()
    assert str(e.value.__cause__) == "no cublas"


def test_its_version(gpu):
    assert blas.version() == "13.0.2"


def test_the_signatures_are_those_of_the_c_functions(monkeypatch):
    """Declared for ctypes with the right number of arguments; a real library is asked where there is one."""

    class Library:
        def __getattr__(self, name):
            value = self.__dict__[name] = type("Function", (), {})()
            return value

    fake = Library()
    monkeypatch.setattr(blas, "_find", lambda: fake)
    library = blas.library()
    assert len(library.cublasGemmStridedBatchedEx.argtypes) == 23
    assert library.cublasSetWorkspace_v2.argtypes[2] is ctypes.c_size_t
    for stride in (10, 14, 19):  # the strides are 64 bits wide
        assert library.cublasGemmStridedBatchedEx.argtypes[stride] is ctypes.c_longlong
