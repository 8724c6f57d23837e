"""The registry: a backend of one's own, and what is asked of backends beside the arithmetic."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import Tensor, kernels, models, reference


@pytest.fixture
def registry(monkeypatch):
    """The registered backends, put back after the test."""
    backends = dict(kernels._backends)
    monkeypatch.setattr(kernels, "_backends", backends)
    return backends


@pytest.fixture
def counting(registry):
    """A backend for the CPU as docs/contributing.md has it: the reference, with one function overridden."""
    backend = ModuleType("counting")
    exec("from minires.reference import *", vars(backend))
    backend.calls = 0

    def relu(x):
        backend.calls += 1
        return reference.relu(x)

    backend.relu = relu
    kernels.register("cpu", backend, ("float32",))
    return backend


def test_a_backend_of_ones_own(counting):
    """It needs no fused branch, and computes a network as the reference does."""
    model, x = models.resnet20(generator=np.random.default_rng(0)), Tensor(np.ones((2, 8, 8, 3), np.float32))
    logits = model(x)
    F.cross_entropy(logits, np.array([1, 2])).backward()
    assert counting.calls == 19  # one behind the stem, two in each of nine blocks
    again = models.resnet20(generator=np.random.default_rng(0))
    kernels.use("reference")
    try:
        np.testing.assert_array_equal(again(x).data, logits.data)
    finally:
        kernels.use("auto")
    assert counting.calls == 19


@pytest.mark.parametrize("array", [np.ones(3), np.ones(3, np.uint8), np.ones((0, 3), np.float32)])
def test_what_a_backend_does_not_take_is_the_references(counting, array):
    assert kernels.of(np.ones(3, np.float32)) is counting
    assert kernels.of(array) is reference


def test_parts_that_a_backend_lacks(counting):
    assert kernels.part("Step", "cpu") is None
    assert kernels.part("threads", "cpu") is None
    assert mr.info()["threads"] >= 1
    counting.threads = lambda: 7
    assert mr.info()["threads"] == 7
    kernels.use("reference")
    try:
        assert kernels.part("threads", "cpu") is None
    finally:
        kernels.use("auto")


def test_precisions_without_a_backend_that_offers_them(registry):
    registry.clear()
    assert kernels.default_precision() == kernels.default_precision("bf16") == kernels.precision_in_use() == "fp32"
    kernels.use_precision("fp32")
    with pytest.raises(RuntimeError, match="precision 'tf32': no backend here offers it; use 'fp32'"):
        kernels.use_precision("tf32")
    with pytest.raises(ValueError, match="precision: 'fp8' is unknown"):
        kernels.use_precision("fp8")


def test_what_is_no_backend_is_refused(registry):
    with pytest.raises(ValueError, match=r"register: mine has no .*; a backend begins with"):
        kernels.register("cpu", ModuleType("mine"), ("float32",))
    with pytest.raises(ValueError, match="register: device 'tpu' is unknown, expected 'cpu' or 'cuda'"):
        kernels.register("tpu", reference, ("float32",))
    with pytest.raises(ValueError, match="register: None has no"):
        kernels.register("cpu", None, ("float32",))
    with pytest.raises(ValueError, match="dtypes is 'float32', expected names"):
        kernels.register("cpu", reference, "float32")
    mine = ModuleType("mine")
    exec("from minires.reference import *", vars(mine))
    mine.branch = len
    with pytest.raises(ValueError, match="mine has one of branch and evaluate_branch, expected both or neither"):
        kernels.register("cpu", mine, ("float32",))
