"""A whole training step as one launch: a CUDA graph.

Launching a kernel costs the host some microseconds, and a step of ResNet-20 has 255 of them, of which many run for less
than that: the GPU waits for Python. A graph is recorded once, by running the step while the stream only takes notes,
and then replayed with one call. What that asks of the step:

    the same arrays every time     inputs are copied into fixed ones, and memory comes from a pool of the graph's own:
                                   what was freed during the recording is used by the replay, and by nobody else
    no numbers that change         learning rate and step count are read from the device (optimizers.cu)
    nothing that waits or copies   losses are collected on the device (loss.cu, record_step)
    nothing new                    kernels are compiled, and the pool filled, by running the step before it is recorded

Source: the CUDA programming guide, on graphs and stream capture.
Reading order: after branch.py. Next: train/device_step.py, and docs/fast-cuda.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

from minires.kernels.cuda import blas

_recorders: WeakSet[Recorder] = WeakSet()


def pools_bytes() -> int:
    """What the pools of all graphs have taken from the device, beside CuPy's default pool."""
    return sum(recorder.pool.total_bytes() for recorder in _recorders)


class Recorder:
    """A stream, a memory pool, and, once `record` has run, a graph that `replay` launches on that stream."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        self._graph = None
        _recorders.add(self)

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
        """Give what no array lies in back to the device, from this pool and from CuPy's default one."""
        import cupy

        self.stream.synchronize()
        self.pool.free_all_blocks()
        cupy.get_default_memory_pool().free_all_blocks()

    def record(self, function: Callable[[], None]) -> None:
        """Note down what `function` launches; it does not run. The stream must be the current one.

        Raises `RuntimeError`, and leaves the stream usable, for a function that waits for the GPU, copies to or from
        it, or fails in another way.
        """
        blas.prepare(self.stream.ptr)
        with self.memory():
            self.stream.begin_capture()
            try:
                function()
            except Exception as error:
                self._abandon()
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise RuntimeError(f"the step cannot be recorded as a CUDA graph ({text})") from error
            self._graph = self.stream.end_capture()

    def _abandon(self) -> None:
        with suppress(Exception):  # the capture may be invalid already; the first error is the one that matters
            self.stream.end_capture()

    def replay(self) -> None:
        """Run it once more, without waiting."""
        self._graph.launch(self.stream)
