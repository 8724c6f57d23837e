"""The simulated GPU notices what it is there for: races, host arrays, float64, waiting, and memory misused by a
graph."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import minires as mr
from minires.cuda import launch
from tests import simulator
from tests.simulator import compiler, fake_cupy

RACE = """
extern "C" __global__ void turn_around(
    float* x) {  // [64]
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    BARRIER
    x[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void warp_total(
    float* x) {  // [64]
    float v = x[threadIdx.x];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    x[threadIdx.x] = v;
}
extern "C" __global__ void stale(
    float* x) {  // [64]
    __shared__ float s[64];
    x[threadIdx.x] = s[threadIdx.x];
}
""".replace("float* x) {  // [64]", "float* x,  // [64]\n    int n) {")
needs_compiler = pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))


def execute(text, name, reverse=False):
    x = np.arange(64, dtype=np.float32)
    compiler.function(text, name, reverse)((1,), (64,), [x.ctypes.data, 64])
    return x


@needs_compiler
def test_a_missing_barrier_gives_two_answers():
    right, wrong = RACE.replace("BARRIER", "__syncthreads();"), RACE.replace("BARRIER", "")
    for reverse in (False, True):
        np.testing.assert_array_equal(execute(right, "turn_around", reverse), np.arange(64)[::-1])
    assert not np.array_equal(execute(wrong, "turn_around"), execute(wrong, "turn_around", reverse=True))


@needs_compiler
def test_shuffles_stay_within_a_warp():
    np.testing.assert_array_equal(execute(RACE.replace("BARRIER", ""), "warp_total"), [496] * 32 + [1520] * 32)


@needs_compiler
def test_shared_memory_is_nan_at_first():
    assert np.isnan(execute(RACE.replace("BARRIER", ""), "stale")).all()


def test_which_kernels_wait_is_found_through_the_functions_they_call():
    text = launch.source("loss")
    assert compiler.waits("cross_entropy", text)  # through warp_max
    assert compiler.waits("mean_of", text)
    assert not compiler.waits("cross_entropy_backward", text)
    assert compiler.waits("convolution", launch.source("convolution"))
    sums = launch.source("sums")  # its first kernel stands behind functions that end on the line where they begin
    assert compiler.waits("column_sum_partials", sums)
    assert not compiler.waits("sum_parts", sums)


def test_a_kernel_that_does_not_compile_says_why(gpu):
    with pytest.raises(RuntimeError, match=r"does not compile the kernels: (.|\n)*no_such_function"):
        compiler.build('extern "C" __global__ void f(\n    int n) {\n    no_such_function(n);\n}')


def test_what_the_device_refuses(gpu):
    import cupy

    x = cupy.asarray(np.ones((2, 3), np.float32))
    for action, kind, message in [
        (lambda: x + np.ones(3, np.float32), TypeError, "a host array of shape"),
        (lambda: x.__setitem__(0, np.ones(3, np.float32)), TypeError, "a host array"),
        (lambda: x * np.float64(2) if False else x.astype("float64"), TypeError, "float64 on the device"),
        (lambda: cupy.zeros(3), TypeError, "float64 on the device"),
        (lambda: cupy.asarray(np.ones(3)), TypeError, "float64 on the device"),
        (lambda: np.asarray(x), TypeError, "Implicit conversion to a NumPy array is not allowed"),
        (lambda: cupy.no_such_function(x), AttributeError, "no_such_function"),
    ]:
        with pytest.raises(kind, match=message):
            action()


def test_everything_is_counted(gpu):
    import cupy

    x = cupy.asarray(np.ones((2, 3), np.float32))
    y = (x + 1) * x[0]
    y[...] = 2
    assert gpu.launches == {"add": 1, "mul": 1, "assign": 1}
    assert (gpu.copies, gpu.synchronisations) == ({"to device": 1}, 0)
    assert float(y.sum()) == 12
    y.get()
    assert gpu.copies["to host"] == 1
    assert gpu.synchronisations == 2


def test_new_memory_is_nan_and_old_memory_is_used_again(gpu):
    import cupy

    x = cupy.empty(100, dtype="float32")
    assert np.isnan(x.get()).all()
    address = x.data.ptr
    x[...] = 1
    del x
    again = cupy.empty(100, dtype="float32")
    assert again.data.ptr == address
    assert np.isnan(again.get()).all()


def test_memory_runs_out():
    if simulator.why_not():
        pytest.skip(str(simulator.why_not()))
    with simulator.gpu(memory_bytes=1 << 20):
        import cupy

        x = cupy.zeros(1 << 17, dtype="float32")
        del x
        cupy.zeros(1 << 18, dtype="float32")  # fits when the free block is given back
        with pytest.raises(MemoryError, match="Out of memory allocating 1,200,000 bytes"):
            cupy.zeros(300_000, dtype="float32")


def test_a_graph_repeats_what_was_captured_and_forbids_waiting(gpu):
    import cupy

    x = cupy.asarray(np.ones(4, np.float32))
    with cupy.cuda.Stream() as stream:
        stream.begin_capture()
        x += 1
        y = x * 2
        for wait in (x.get, lambda: float(x[0]), lambda: cupy.asarray(np.ones(1, np.float32)), stream.synchronize):
            with pytest.raises(fake_cupy.CUDARuntimeError, match="while the stream is being captured"):
                wait()
        graph = stream.end_capture()
    assert x.tolist() == [1] * 4  # nothing has run yet
    graph.launch(stream)
    graph.launch(stream)
    assert x.tolist() == [3] * 4
    assert y.tolist() == [6] * 4


def test_afterwards_nothing_is_left(gpu):
    reason = mr.cuda.why_not()
    assert reason is None
    with simulator.gpu() as inner:
        assert inner is not gpu
    import cupy

    assert cupy._gpu is gpu


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_stand_in_has_no_name_that_cupy_lacks():
    """What runs on it must run on CuPy: names of the module, of arrays, and of cupy.cuda."""
    import cupy

    fake = fake_cupy.module(fake_cupy.Gpu(1 << 20, reverse=False))
    for mine, real in ((fake, cupy), (fake.ndarray, cupy.ndarray), (fake.cuda, cupy.cuda),
                       (fake.cuda.runtime, cupy.cuda.runtime), (fake.cuda.Stream, cupy.cuda.Stream),
                       (fake.cuda.MemoryPool, cupy.cuda.MemoryPool)):  # fmt: skip
        public = {name for name in vars(mine) if not name.startswith("_")} - {"gpu", "recorded"}
        assert [name for name in sorted(public) if not hasattr(real, name)] == []
