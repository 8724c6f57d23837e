"""Recording what is launched: on which stream, what cannot be recorded, and memory that runs out meanwhile."""

from __future__ import annotations

import pytest

from minires.cuda import blas
from minires.cuda.graph import Recorder, RecordingError
from tests import simulator


@pytest.fixture
def recorder(any_gpu):
    return Recorder()


def test_replays_do_what_was_recorded(recorder):
    import cupy

    x = cupy.zeros(3, dtype="float32")
    with recorder.stream:
        recorder.record(lambda: x.__iadd__(1))
        assert recorder.recorded
        recorder.replay()
        recorder.replay()
        recorder.stream.synchronize()
    assert x.tolist() == [2] * 3


def test_on_another_stream_nothing_would_be_recorded(recorder):
    with pytest.raises(RuntimeError, match="the current stream is not the recorder's"):
        recorder.record(lambda: None)
    assert not recorder.recorded


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_is_no_fault_of_the_step_is_passed_on_and_the_stream_stays_usable(recorder, error):
    import cupy

    def fail():
        raise error

    x = cupy.zeros(2, dtype="float32")
    with recorder.stream:
        with pytest.raises(error):
            recorder.record(fail)
        assert not recorder.stream.is_capturing()
        assert not recorder.recorded
        x += 1
        assert x.tolist() == [1, 1]


def test_a_function_that_waits_is_refused_and_a_good_one_recorded_after_it(recorder):
    import cupy

    x = cupy.zeros(2, dtype="float32")
    with recorder.stream:
        with pytest.raises(RecordingError, match="cannot be recorded as a CUDA graph"):
            recorder.record(lambda: float(x.sum()))
        recorder.record(lambda: x.__iadd__(1))
        recorder.replay()
        recorder.stream.synchronize()
    assert x.tolist() == [1, 1]


def test_memory_that_was_let_go_of_in_a_recording_is_not_given_back_for_more():
    """CuPy's pool would free it, and the graph would work in memory that is no longer its own."""
    if simulator.why_not():
        pytest.skip(str(simulator.why_not()))
    with simulator.gpu() as gpu:
        import cupy

        recorder = Recorder()
        blas.prepare(recorder.stream.ptr)  # its workspace lies outside of the pool

        def step():
            for size in (1 << 16, 1 << 17):  # 256 KiB, let go of, then 512: both would fit, one after the other
                cupy.zeros(size, dtype="float32")

        gpu.memory_bytes = gpu.used_bytes + (600 << 10)
        with recorder.stream:
            with pytest.raises(MemoryError, match="524,288 bytes left for the recording"):
                recorder.record(step)
            with recorder.memory():
                step()  # outside of a recording they are given back
            assert not recorder.stream.is_capturing()


def test_the_memory_of_a_graph_stays_when_what_is_unused_is_freed(recorder):
    import cupy

    with recorder.stream:
        with recorder.memory():
            cupy.zeros(1000, dtype="float32")
        recorder.free_unused()
        assert recorder.pool.total_bytes() == 0
        with recorder.memory():
            cupy.zeros(1000, dtype="float32")
        recorder.record(lambda: cupy.zeros(1000, dtype="float32"))
        recorder.free_unused()
        assert recorder.pool.total_bytes() > 0
