"""The tools of the stages: random arrays, times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minires.cuda import precision
from minires.cuda.graph import Recorder, RecordingError


def random(shape: Sequence[int], dtype: str = "float32", seed: int = 0) -> Any:
    """Normally distributed numbers on the GPU; beyond 4 million they repeat.

    With zeros and ones fewer wires of the GPU would switch, and the GPU might clock higher than in a network.
    """
    import cupy

    drawn = cupy.asarray(_normal(seed))
    out = cupy.empty(int(np.prod(shape)), dtype=dtype)
    for begin in range(0, out.size, drawn.size):
        part = out[begin : begin + drawn.size]
        part[...] = drawn[: part.size]
    return out.reshape(tuple(shape))


@cache
def _normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(1 << 22).astype(np.float32)


class Time(NamedTuple):
    """The times of a call in several rounds, and whether it could be recorded."""

    rounds: list[float]  # milliseconds
    recorded: bool

    @property
    def milliseconds(self) -> float:
        """The median."""
        return statistics.median(self.rounds)

    @property
    def note(self) -> str:
        """What to say beside the time: nothing, or that it has Python's in it."""
        return "" if self.recorded else " (NOT RECORDED: with the time of Python)"


def timed(function: Callable[[], Any], tiny: bool, repeat: int = 10, rounds: int = 5) -> Time:
    """The time of one call on the GPU, in each of `rounds` of `repeat` calls between two events.

    The calls are recorded as a CUDA graph: launched one by one, small kernels would take the time of the Python that
    launches them. Calls that cannot be recorded are launched one by one, with `recorded` False.
    """
    import cupy

    repeat, rounds = (1, 1) if tiny else (repeat, rounds)

    def calls() -> None:
        for _ in range(repeat):
            function()

    recorder = Recorder()
    cupy.cuda.get_current_stream().synchronize()
    with recorder.stream:
        with recorder.memory():
            function()
        try:
            recorder.record(calls)
            launch = recorder.replay
        except RecordingError:
            launch = calls
        launch()
        times = [elapsed(*around(launch)) / repeat for _ in range(rounds)]
    return Time(times, recorder.recorded)


def around(function: Callable[[], Any]) -> tuple[Any, Any]:
    """Call `function`; an event before and one after what it launches."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    function()
    end.record()
    return begin, end


def elapsed(begin: Any, end: Any) -> float:
    """Milliseconds between two events; waits for the second."""
    import cupy

    end.synchronize()
    return cupy.cuda.get_elapsed_time(begin, end)


def copy_bandwidth(tiny: bool) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    import cupy

    a = random((1 << (12 if tiny else 28),))
    b = cupy.empty(a.shape, dtype="float32")
    return 2 * a.nbytes / (1e-3 * timed(lambda: b.__setitem__(..., a), tiny).milliseconds)


def dtype_of(choice: str) -> str:
    """The dtype of activations in this precision."""
    return "bfloat16" if choice == "bf16" else "float32"


def precisions() -> list[str]:
    """The precisions in which this GPU computes."""
    found = [choice for choice in precision.CHOICES if not precision.why_not(choice)]
    if "bf16" in found:
        import ml_dtypes  # noqa: F401  makes "bfloat16" a dtype
    return found
