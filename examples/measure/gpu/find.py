"""The stages that look for faults: smoke, kernels, tests."""

from __future__ import annotations

import functools
import importlib
from contextlib import suppress
from typing import Any

import numpy as np

import minires as mr
import minires.functional as F
from examples.measure.gpu.cases import Cases
from examples.measure.gpu.tools import copy_bandwidth, dtype_of, precisions, random, timed
from examples.measure.machine_code import variants
from minires import cuda, kernels, models, nn, optim
from minires.cuda import blas, launch
from minires.cuda.check import TOLERANCE, computing, described, differences
from minires.cuda.graph import Recorder, RecordingError, free_memory
from minires.cuda.step import DeviceStep

check = importlib.import_module("minires.cuda.check")  # `cuda.check` is the function
LR = 0.01  # of the steps: small enough for each step to reduce the loss


def compared(got: Any, expected: Any, names: str, tolerance: float, text: str = "") -> dict[str, Any]:
    """The values of a row on `got`, one or several outputs called `names`, against what is expected."""
    found = differences(got, expected, names, tolerance)
    wrong = any(row["wrong"] for row in found)
    return {"text": f"{text} {described(found)}".strip(), "outputs": found, "wrong": wrong}


# Smoke: is what everything else rests on there, and does it do what it should? ------------------------------


def smoke(cases: Cases) -> None:
    """Versions; matrix products; recording; recorded steps in each precision; each variant of each file loaded."""
    cases.run("versions", _versions, limit=30)  # looks for a dozen libraries
    known = precisions()
    for precision in known:
        cases.run(f"gemm {precision}", functools.partial(_gemm, precision, 24 if cases.tiny else 256))
        cases.run(f"stacked gemm {precision}", functools.partial(_stacked_gemm, precision))
    cases.run("record and replay", _recorded)
    cases.run("a refused recording", _refused)
    for precision in known:
        cases.run(f"recorded steps {precision}", functools.partial(recorded_steps, precision, cases.tiny), limit=16)
    for file, defines in variants(tiny=cases.tiny):
        if kernels.PRECISIONS[defines.get("PRECISION", 0)] in known:
            name = " ".join([file, *(f"{key}={value}" for key, value in defines.items())])
            cases.run(f"load {name}", functools.partial(_loaded, file, defines, name))


def _versions() -> dict[str, Any]:
    libraries = ""
    with suppress(ImportError, AttributeError):  # the simulated CuPy has none
        libraries = str(importlib.import_module("cupyx").get_runtime_info())
    path = getattr(blas.library(), "_name", "simulated")
    text = f"NumPy {np.__version__}, cuBLAS {blas.version()} ({path})"
    return {"text": text, "libraries": libraries}


def _loaded(file: str, defines: dict[str, Any], name: str) -> dict[str, Any]:
    found = {}
    for kernel in launch.program(file, **defines).values():
        function = kernel._module.get_function(kernel.name)
        attributes = ("num_regs", "local_size_bytes", "shared_size_bytes")  # of registers, spilled, shared
        found[kernel.name] = {a: getattr(function, a) for a in attributes if hasattr(function, a)}
    spilled = [k for k, values in found.items() if values.get("local_size_bytes")]
    most = max((values.get("num_regs", 0) for values in found.values()), default=0)
    text = f"{name}: {len(found)} kernels, up to {most} registers" + f", SPILLS: {', '.join(spilled)}" * bool(spilled)
    return {"text": text, "kernels": found}


def _gemm(precision: str, n: int) -> dict[str, Any]:
    import cupy

    a, b = (random((n, n), dtype_of(precision), seed) for seed in (0, 1))
    c = cupy.empty((n, n), dtype="float32")
    blas.matmul(*(blas.Matrix(m, n, n) for m in (a, b, c)), tf32=precision == "tf32")
    expected = np.matmul(*(m.get().astype(np.float64) for m in (a, b)))
    return compared(c, expected, "c", TOLERANCE[precision], f"gemm {precision}, {n}x{n}x{n}:")


def _stacked_gemm(precision: str) -> dict[str, Any]:
    """Three products at once, of matrices that lie inside larger ones, transposed, and added to what is there."""
    dtype = dtype_of(precision)
    a, b, c = random((3, 40, 32), dtype, 0), random((3, 24, 40), dtype, 1), random((3, 32, 48), "float32", 2)
    left, right = a.get().astype(np.float64)[:, :, 8:], b.get().astype(np.float64)[:, 8:, :]
    expected = c.get().astype(np.float64)
    expected[:, 4:28, 16:32] += left.swapaxes(1, 2) @ right.swapaxes(1, 2)
    blas.matmul(
        blas.Matrix(a, 40, 24, offset=8, ld=32, stride=40 * 32).T,
        blas.Matrix(b, 16, 40, offset=8 * 40, stride=24 * 40).T,
        blas.Matrix(c, 24, 16, offset=4 * 48 + 16, ld=48, stride=32 * 48),
        count=3, accumulate=True, tf32=precision == "tf32",
    )  # fmt: skip
    return compared(c, expected, "c", TOLERANCE[precision], f"stacked gemm {precision}, offsets, ld, accumulate:")


def _recorded() -> dict[str, Any]:
    """c += a b, then y = relu(c), recorded and replayed twice."""
    import cupy

    a, b, c = (random((64, 64), seed=seed) for seed in range(3))
    y = cupy.empty(c.shape, dtype="float32")
    left, right, total = (m.get().astype(np.float64) for m in (a, b, c))

    def work() -> None:
        blas.matmul(*(blas.Matrix(m, 64, 64) for m in (a, b, c)), accumulate=True)
        y[...] = cuda.relu(c)

    recorder = Recorder()
    cupy.cuda.get_current_stream().synchronize()
    with recorder.stream:
        before = c.copy()
        with recorder.memory():
            work()
        c[...] = before
        recorder.record(work)
        recorder.replay()
        recorder.replay()
        recorder.stream.synchronize()
    total += 2 * left @ right
    return compared((c, y), (total, np.maximum(total, 0)), "c relu(c)", 1e-5, "a graph, replayed twice:")


def _refused() -> dict[str, Any]:
    """A recording that waits for the GPU is refused; the stream can record afterwards."""
    import cupy

    x = random((100,))
    expected = x.get().astype(np.float64) + 1
    recorder, said = Recorder(), None
    cupy.cuda.get_current_stream().synchronize()
    with recorder.stream:
        try:
            recorder.record(lambda: float(x[0]))
        except RecordingError as error:
            said = str(error)
        recorder.record(lambda: x.__iadd__(1))
        recorder.replay()
        recorder.stream.synchronize()
    row = compared(x, expected, "x", 1e-6, f"refused: {said};")
    return row | {"wrong": row["wrong"] or said is None}


def recorded_steps(precision: str, tiny: bool) -> dict[str, Any]:
    """Steps of ResNet-20, as a graph and launched one by one, and on the CPU."""
    right, text = check.steps_are_right(precision, *((2, 8) if tiny else (8, 32)))
    return {"text": f"steps of ResNet-20 in {precision}: {text}", "wrong": not right}


def _model_and_batch(depth: int, batch: int, size: int) -> tuple[nn.Module, Any, Any]:
    """A network on the CPU, and random images and labels on the GPU: the same ones every time."""
    import cupy

    mr.manual_seed(0)
    model = models.build(depth, 10, "cifar", zero_init_last=depth != 20)
    labels = np.random.default_rng(0).integers(0, 10, batch)
    return model, random((batch, size, size, 3)), cupy.asarray(labels)


def step_losses(
    depth: int, batch: int, precision: str, size: int, graph: bool, steps: int
) -> tuple[list[float], DeviceStep, Any, Any]:
    """The losses of some steps on one batch of random images; the step and the batch, to continue with."""
    model, x, y = _model_and_batch(depth, batch, size)
    model.to("cuda")
    step = DeviceStep(model, optim.SGD(model.parameters(), LR, 0.9), F.cross_entropy, graph=graph)
    with computing(precision), step.active():
        for _ in range(steps):
            step(x, y, LR)
        losses = [loss for loss, _ in step.read()]
    return losses, step, x, y


# Kernels ----------------------------------------------------------------------------------------------------

IN_L2 = 100e6  # bytes, below which the next call finds some of them in the cache: 50 to 60 MB on an H100 or H200


# What a kernel has to move, in multiples of the largest array that it is called with.
PASSES = {
    "batch_norm_statistics": 1, "batch_norm_apply": 2, "batch_norm_backward": 5,
    "batch_norm_backward in evaluation": 5, "normalise_add_relu": 2, "normalise_add_relu + shortcut": 3,
    "normalise_add_relu_backward": 5, "normalise_add_relu_backward + shortcut": 7, "accumulate": 5, "to float32": 3,
    "column_sum": 1, "relu": 2, "relu_backward": 3, "max_pool2d": 1.25, "max_pool2d_backward": 2.5,
    "avg_pool2d": 1.25, "avg_pool2d_backward": 5, "global_avg_pool2d": 1, "global_avg_pool2d_backward": 1,
    "cross_entropy": 2, "cross_entropy_backward": 2, "sgd_update": 5, "adam_update": 7, "adam_update decoupled": 7,
    "sgd_update after a loss that is not finite": 9, "crop_and_flip": 2, "make_batch": 5, "normalize": 5,
}  # fmt: skip


def kernel_times(cases: Cases) -> None:
    """Compare each kernel's results with the definition on the CPU; take its time and its share of a copy's bandwidth.
    Kernels that take activations are tried with bfloat16 too."""
    bandwidth = copy_bandwidth(cases.tiny)
    for case in check.kernel_cases(*((2, 6, 8, 1000) if cases.tiny else (256, 32, 64, 16_000_000))):
        cases.run(case.name, functools.partial(_kernel, case, bandwidth, cases.tiny, "float32"))
        if case.activations and "bf16" in precisions():
            cases.run(f"{case.name} bf16", functools.partial(_kernel, case, bandwidth, cases.tiny, "bfloat16"))
        free_memory()


def _kernel(case: check.Case, bandwidth: float, tiny: bool, dtype: str) -> dict[str, Any]:
    found = case.compare(dtype, TOLERANCE["fp32" if dtype == "float32" else "bf16"])
    device, _ = case.on_device(dtype)
    moved = PASSES[case.name] * max(getattr(array, "nbytes", 0) for array in device)
    time = timed(lambda: case.function(*device), tiny)
    ms = time.milliseconds
    share = f"{1e5 * moved / ms / bandwidth:3.0f} % of a copy"
    share += " (in L2)" * (moved < IN_L2 and not tiny)
    what = case.name + " bf16" * (dtype == "bfloat16")
    text = f"{what:<44}{ms:8.3f} ms {moved / ms / 1e6:7,.0f} GB/s, {share}, {described(found)}{time.note}"
    wrong = any(row["wrong"] for row in found)
    values = {"milliseconds": ms, "rounds": time.rounds, "recorded": time.recorded, "bytes": moved}
    return {"text": text, "outputs": found, "wrong": wrong, **values}


# Tests ------------------------------------------------------------------------------------------------------

TESTS = (
    "tests/backends", "tests/cuda", "tests/functional/test_empty.py", "tests/data/test_loader.py",
    "tests/examples/test_train_on_gpu.py", "tests/examples/test_gpu_check.py",
)  # fmt: skip
MOST_FAILURES = 15  # after so many the rest would say no more


def tests(cases: Cases) -> None:
    """The tests of the CUDA path that need a GPU, in this process; a row for each that fails. The reference on CuPy,
    some 190 tests more, is left to `pytest -m gpu`."""
    import pytest

    from examples.measure.gpu.pytest_cases import TestCases

    chosen = ["tests/cuda/test_graph.py"] if cases.tiny else TESTS
    plugin = TestCases(cases)
    options = f"-q --tb=short --maxfail={MOST_FAILURES} --continue-on-collection-errors -m gpu -p no:cacheprovider"
    options = [*options.split(), "-p", "no:faulthandler", "-k", "cuda or real"]  # faulthandler is ours (cases.py)
    options += ["-W", "ignore::DeprecationWarning"]  # of newer libraries: not what is asked here
    status = pytest.main([*options, *chosen], plugins=[plugin])
    counts = ", ".join(f"{count} {what}" for what, count in plugin.counts.items())
    text = f"{counts}, from test {cases.first + 1} of {plugin.collected} on"
    if plugin.counts["failed"] >= MOST_FAILURES:
        text += f"; stopped after {MOST_FAILURES} failures"
    if plugin.late:
        text += f"; there was no time for {plugin.collected - cases.number} tests"
    ended = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    broken = not plugin.collected or not (status in ended or plugin.late)
    if broken:
        text += f"; PYTEST ITSELF FAILED, status {int(status)}"
    cases.row("pytest", text, wrong=broken, untried=(plugin.collected - cases.number) * plugin.late, **plugin.counts)


STAGES = {"smoke": smoke, "kernels": kernel_times, "tests": tests}
