"""The backends: each with every array library and dtype that it takes. A new backend is one line here.

The library "simulated" is the GPU that is not there: CUDA kernels compiled by g++ (tests/simulator).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minires.device import to_device
from minires.testing import with_layout

BACKENDS = [  # module, array library, dtype
    ("reference", "numpy", "float64"),
    ("reference", "numpy", "float32"),
    ("reference", "cupy", "float64"),
    ("reference", "cupy", "float32"),
    ("cpu", "numpy", "float32"),
    ("cuda", "simulated", "float32"),
    ("cuda", "cupy", "float32"),
]


class Backend:
    """A backend's `module`, called with NumPy arrays and answering with float64 NumPy arrays."""

    def __init__(self, name: str, library: str, dtype: str):
        self.module: ModuleType = importlib.import_module(f"minires.{name}")
        self.library, self.dtype = library, np.dtype(dtype)

    @contextmanager
    def active(self) -> Iterator[ModuleType]:
        """The backend's array library; the simulated one exists only in here."""
        if self.library == "simulated":
            from tests import simulator  # not above: without minires.cuda the other backends can be tested

            with simulator.gpu():
                yield sys.modules["cupy"]
        else:
            yield importlib.import_module(self.library)

    def array(self, value: Any, layout: str = "contiguous") -> Any:
        """`value`; if it is an array, one of this backend: floats in its dtype. Call it while that is active."""
        if not isinstance(value, np.ndarray):
            return value
        value = value.astype(self.dtype) if value.dtype.kind == "f" else value
        if self.library == "numpy":
            return with_layout(value, layout)
        xp = sys.modules["cupy"]
        if layout in ("transposed", "reversed"):  # what a view on the device can look like
            axes = tuple(reversed(range(value.ndim)))
            steps = (slice(None, None, -1 if layout == "reversed" else 1),) * value.ndim
            return xp.asarray(np.ascontiguousarray(value[steps].transpose(axes))).transpose(*axes)[steps]
        if layout == "loose":  # as minires.testing makes it: axes of length 1 keep the stride of another place
            order = sorted(range(value.ndim), key=lambda axis: value.shape[axis] != 1)
            moved = xp.asarray(np.ascontiguousarray(value.transpose(order)).reshape([value.shape[i] for i in order]))
            return moved.transpose(*np.argsort(order).tolist()) if order else moved
        return xp.asarray(np.ascontiguousarray(value).reshape(value.shape))

    def call(self, name: str, *arguments: Any, layout: str = "contiguous", **options: Any) -> Any:
        """The function's result as float64 on the host. Arguments must come out unchanged, floats keep their dtype."""
        with self.active():
            given = [self.array(argument, layout) for argument in arguments]
            before = [np.copy(to_device(a, "cpu")) if hasattr(a, "dtype") else a for a in given]
            results = getattr(self.module, name)(*given, **options)
            for i, (a, b) in enumerate(zip(given, before)):
                assert not hasattr(a, "dtype") or (to_device(a, "cpu") == b).all(), f"{name} modified argument {i}"
            if isinstance(results, tuple):
                return tuple(self.result(name, r) for r in results)
            return self.result(name, results)

    def result(self, name: str, array: Any) -> np.ndarray | None:
        if array is None:
            return None
        assert array.dtype == self.dtype, f"{name} answers in {array.dtype}, asked in {self.dtype}"
        return to_device(array, "cpu").astype(np.float64)

    def expect(self, got: np.ndarray | None, expected: np.ndarray | None) -> None:
        """Equal up to rounding: in L2 norm, since a sum's rounding error goes with its largest terms."""
        assert (got is None) == (expected is None)
        if got is None:
            return
        assert got.shape == np.shape(expected)
        tolerance = 1e-12 if self.dtype == np.float64 else 1e-5
        difference = float(np.linalg.norm(got - expected))
        assert difference <= tolerance * (1 + float(np.linalg.norm(expected)))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(case, id="-".join(case), marks=[pytest.mark.gpu] if case[1] == "cupy" else []) for case in BACKENDS
    ],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param[1] == "simulated":
        from tests import simulator

        if simulator.why_not():
            pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    return Backend(*request.param)
