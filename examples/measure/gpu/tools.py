"""The tools of the stages: random arrays, differences, times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minires.cuda import convolution, precision
from minires.cuda.graph import Recorder, RecordingError
from minires.device import to_device

TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 1e-2}  # of results, in L2 norm; a product in tf32 may be truncated


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


def outputs(got: Any, expected: Any, names: Sequence[str], tolerance: float) -> list[dict[str, Any]]:
    """The distance of each output from the expected output.

    error      L2 norm of the difference, relative to the norm of the expected output
    nans       number of unexpected NaNs
    first_bad  the first index where the difference is above the tolerance of the value there and of the mean square,
               with the result and the expected value; None if there is none
    wrong      whether error is above the tolerance, or there are NaNs

    The `tolerance` for bfloat16, 1e-2, is 1e-4 for sums kept in float32: their terms were exact.
    """
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    single = min(tolerance, 1e-4) if tolerance == TOLERANCE["bf16"] else tolerance
    rows = []
    for name, a, b in zip(names, got, expected, strict=True):
        if b is None:
            continue
        allowed = single if a.dtype == np.float32 else tolerance
        a, b = to_device(a, "cpu").astype(np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            rows.append({"name": name, "wrong": True, "error": None, "shape": a.shape, "expected_shape": b.shape})
            continue
        size = max(float(np.linalg.norm(b)), 1e-30)
        error = float(np.linalg.norm(a - b)) / size
        nans = int((np.isnan(a) & ~np.isnan(b)).sum())
        bad = ~(abs(a - b) <= allowed * (abs(b) + size / max(b.size, 1) ** 0.5)) & ~(np.isnan(a) & np.isnan(b))
        row = {"name": name, "error": error, "nans": nans, "bad": int(bad.sum()), "of": int(b.size)}
        wrong = nans > 0 or not error <= allowed
        row |= {"wrong": wrong, "first_bad": None}
        if wrong and bad.any():
            index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), b.shape))
            row |= {"first_bad": index, "got": float(a[index]), "expected": float(b[index])}
        rows.append(row)
    return rows


def described(rows: list[dict[str, Any]]) -> str:
    """One line on `outputs`: the largest error; of what is wrong, how and where."""
    wrong = [row for row in rows if row["wrong"]]
    if not wrong:
        return f"error {max(row['error'] for row in rows):.0e}"
    texts = []
    for row in wrong:
        if row["error"] is None:
            texts.append(f"{row['name']} has shape {row['shape']}, expected {row['expected_shape']}")
            continue
        text = f"{row['name']}: error {row['error']:.0e}, {row['bad']} of {row['of']} bad, {row['nans']} NaN"
        if row["first_bad"] is not None:
            text += f", first at {row['first_bad']}: got {row['got']:.6g}, expected {row['expected']:.6g}"
        texts.append(text)
    return "; ".join(texts)


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


@contextmanager
def computing(choice: str, algorithm: str = "auto") -> Iterator[None]:
    """Inside, the kernels compute in this precision, and convolutions by `algorithm`."""
    before = precision.current, convolution.algorithm
    precision.use(choice)
    convolution.algorithm = algorithm
    try:
        yield
    finally:
        precision.current, convolution.algorithm = before


def dtype_of(choice: str) -> str:
    """The dtype of activations in this precision."""
    return "bfloat16" if choice == "bf16" else "float32"


def precisions() -> list[str]:
    """The precisions in which this GPU computes."""
    found = [choice for choice in precision.CHOICES if not precision.why_not(choice)]
    if "bf16" in found:
        import ml_dtypes  # noqa: F401  makes "bfloat16" a dtype
    return found
