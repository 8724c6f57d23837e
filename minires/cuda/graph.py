"""A whole training step as one launch: a CUDA graph.

Launching a kernel costs the host some microseconds. A step of ResNet-20 launches some 220 kernels, and many of them
run for a shorter time than their launch takes: the GPU waits for Python. A graph is recorded once and then replayed
with one call. While recording, the stream captures the step's launches instead of running them. A replay requires of
the step:

    the same arrays every time     inputs are copied into fixed arrays, and memory comes from a pool of the graph's own:
                                   the replay uses memory freed during the recording, and nothing else may use it
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
# CuPy never frees the memory of a deleted pool. A recorder therefore leaves its pool here until the pool is empty.
_left_behind: list[Any] = []


def pools_bytes() -> int:
    """The bytes that the pools of all graphs hold on the device, beside CuPy's default pool."""
    return sum(pool.total_bytes() for pool in [*(recorder.pool for recorder in _recorders), *_left_behind])


def free_memory() -> None:
    """Return unused memory to the device, from CuPy's default pool and from the pools of deleted recorders. Live
    recorders keep their pools: a graph works in memory that no array holds any more."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    for pool in _left_behind:
        pool.free_all_blocks()
    _left_behind[:] = [pool for pool in _left_behind if pool.total_bytes()]


class RecordingError(RuntimeError):
    """A step that cannot be recorded. The text says why."""


def _allocator(stream: Any) -> Callable[[int], Any]:
    """An allocator for the pool that takes memory straight from the device.

    When the device is full, CuPy's pool frees its unused blocks and tries again. While `stream` is being captured these
    blocks are in use: captured kernels will need them. A MemoryError makes the pool give up instead.
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
    """A stream and a memory pool; after `record`, also a graph that `replay` launches on the stream."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool(_allocator(self.stream))
        self._graph: Any = None
        _recorders.add(self)
        finalize(self, _left_behind.append, self.pool)

    @property
    def recorded(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Inside, arrays come from the graph's pool. Run the function in it at least once before recording."""
        import cupy

        with cupy.cuda.using_allocator(self.pool.malloc):
            yield

    def free_unused(self) -> None:
        """`free_memory`, and this recorder's pool too unless there is a graph. Waits for the stream."""
        self.stream.synchronize()
        if not self.recorded:
            self.pool.free_all_blocks()
        free_memory()

    def record(self, function: Callable[[], None]) -> None:
        """Capture the launches of `function` without running them. The stream must be the current one.

        Raises `RecordingError`, and leaves the stream usable, for a function that waits for the GPU, copies to or from
        the GPU, or fails in another way; `MemoryError` when the GPU's memory is too small; and `RuntimeError` on
        another stream, which would run the launches.
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
            except BaseException as error:  # Ctrl-C must not leave a stream in capture
                with suppress(Exception):  # the capture may be invalid already; the first error is what matters
                    self.stream.end_capture()
                if isinstance(error, MemoryError) or not isinstance(error, Exception):
                    raise
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise RecordingError(f"the step cannot be recorded as a CUDA graph ({text})") from error

    def replay(self) -> None:
        """Launch the graph, without waiting for it."""
        self._graph.launch(self.stream)
