"""A whole training step as one launch: a CUDA graph.

Launching a kernel costs the host some microseconds. A step of ResNet-20 launches 255 kernels, and many of them run for
less than that: the GPU waits for Python. A graph is recorded once, by running the step while the stream only takes
notes, and then replayed with one call. What a replay asks of the step:

    the same arrays every time     inputs are copied into fixed ones, and memory comes from a pool of the graph's own:
                                   what was freed during the recording is used by the replay, and by nobody else
    no numbers that change         learning rate and step count are read from the device (optimizers.cu)
    no counting in Python          batch norm's batches are counted on the device (batch_norm.cu)
    nothing that waits or copies   losses are collected on the device (loss.cu, record_step)
    nothing new                    kernels are compiled, and the pool filled, by running the step before it is recorded

Source: the CUDA programming guide, on graphs and stream capture.
Reading order: after branch.py. Next: step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet, finalize

from minires.cuda import blas

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation

_recorders: WeakSet[Recorder] = WeakSet()
# CuPy never gives back what lies in a pool that is gone. So a recorder leaves its pool here, until that is empty.
_left_behind: list[Any] = []


def pools_bytes() -> int:
    """What the pools of all graphs have taken from the device, beside CuPy's default pool."""
    return sum(pool.total_bytes() for pool in [*(recorder.pool for recorder in _recorders), *_left_behind])


def free_memory() -> None:
    """Give back to the device what no array lies in: of CuPy's default pool, and of the pools of recorders that are
    gone. Those of other recorders are left alone: a graph works in memory that no array holds any more."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    for pool in _left_behind:
        pool.free_all_blocks()
    _left_behind[:] = [pool for pool in _left_behind if pool.total_bytes()]


class RecordingError(RuntimeError):
    """What was to be recorded cannot be. The text says why."""


def _allocator(stream: Any) -> Callable[[int], Any]:
    """Memory for the pool, straight from the device.

    When there is none, CuPy's pool gives its free blocks back and tries again. While `stream` is being captured these
    are not free: kernels that have been noted will use them. So then it is told of a MemoryError, which it lets pass.
    """
    import cupy

    def allocate(size: int) -> Any:
        try:
            return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if error.status == OUT_OF_MEMORY and stream.is_capturing():
                raise MemoryError(f"the GPU has no {size:,} bytes left for the recording") from error
            raise

    return allocate


class Recorder:
    """A stream, a memory pool, and, once `record` has run, a graph that `replay` launches on that stream."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool(_allocator(self.stream))
        self._graph = None
        _recorders.add(self)
        finalize(self, _left_behind.append, self.pool)

    @property
    def recorded(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Inside, arrays come from the graph's pool. Run the function so before recording it, at least once."""
        import cupy

        with cupy.cuda.using_allocator(self.pool.malloc):
            yield

    def free_unused(self) -> None:
        """The same as `free_memory`, and of this recorder's pool unless there is a graph. Waits for the stream."""
        self.stream.synchronize()
        if not self.recorded:
            self.pool.free_all_blocks()
        free_memory()

    def record(self, function: Callable[[], None]) -> None:
        """Note down what `function` launches; it does not run. The stream must be the current one.

        Raises `RecordingError`, and leaves the stream usable, for a function that waits for the GPU, copies to or from
        it, or fails in another way; `MemoryError` when the GPU's memory is too small; and `RuntimeError` on another
        stream, on which launches would run instead of being noted.
        """
        import cupy

        if cupy.cuda.get_current_stream().ptr != self.stream.ptr:
            raise RuntimeError("record: the current stream is not the recorder's; use `with recorder.stream:`")
        blas.prepare(self.stream.ptr)
        with self.memory():
            self.stream.begin_capture()
            try:
                function()
                self._graph = self.stream.end_capture()
            except BaseException as error:  # Ctrl-C must not leave a stream that only takes notes
                with suppress(Exception):  # the capture may be invalid already; the first error is what matters
                    self.stream.end_capture()
                if isinstance(error, MemoryError) or not isinstance(error, Exception):
                    raise
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise RecordingError(f"the step cannot be recorded as a CUDA graph ({text})") from error

    def replay(self) -> None:
        """Run it once more, without waiting."""
        self._graph.launch(self.stream)
