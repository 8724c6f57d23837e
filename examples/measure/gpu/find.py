"""The stages that look for faults: smoke, kernels, tests."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

import minires as mr
import minires.functional as F
from examples.measure.gpu.cases import Cases
from examples.measure.gpu.tools import (
    TOLERANCE,
    computing,
    copy_bandwidth,
    described,
    dtype_of,
    outputs,
    precisions,
    random,
    timed,
)  # fmt: skip
from examples.measure.machine_code import variants
from minires import cuda, kernels, models, nn, optim, reference
from minires.cuda import batch_norm, blas, launch
from minires.cuda.graph import Recorder, RecordingError, free_memory
from minires.cuda.step import DeviceStep

LR = 0.01  # of the steps: small enough for each step to reduce the loss


def compared(got: Any, expected: Any, names: str, tolerance: float, text: str = "") -> dict[str, Any]:
    """The values of a row on `got`, one or several outputs called `names`, against what is expected."""
    found = outputs(got, expected, names.split(), tolerance)
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
    """Three steps of ResNet-20 after two for warm-up. Graph and eager must give the same losses, bit for bit, and the
    losses of the reference on the CPU up to rounding."""
    batch, size, steps = (2, 8, 5) if tiny else (8, 32, 5)
    graph, eager = (step_losses(20, batch, precision, size, graph, steps)[0] for graph in (True, False))
    host = _losses_on_the_cpu(20, batch, size, steps)
    apart = float(abs(np.subtract(graph, host)).max()) / host[0]  # NaN if any is
    right = apart < {"fp32": 1e-3, "tf32": 5e-2, "bf16": 1e-1}[precision]  # steps amplify what is rounded in the first
    text = f"5 steps of ResNet-20 in {precision}: losses {graph[0]:.4f} to {graph[-1]:.4f}, {apart:.0e} from the CPU's"
    text += "" if right else f" WHICH ARE {host}"
    text += ", graph and eager the same" if graph == eager else f", graph and eager DIFFER: {graph}, {eager}"
    losses = {"graph": graph, "eager": eager, "cpu": host}
    return {"text": text, "wrong": not (graph == eager and right), "losses": losses}


@functools.cache
def _losses_on_the_cpu(depth: int, batch: int, size: int, steps: int) -> list[float]:
    """The same steps as `step_losses`, by the reference."""
    model, x, y = _model_and_batch(depth, batch, size)
    x, y = x.get(), y.get()
    optimizer, losses = optim.SGD(model.parameters(), LR, 0.9), []
    kernels.use("reference")
    try:
        for _ in range(steps):
            loss = F.cross_entropy(model(mr.Tensor(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    finally:
        kernels.use("auto")
    return losses


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


class KernelCase(NamedTuple):
    """A function of the CUDA backend, and what it is called with."""

    name: str
    outputs: str  # their names, separated by spaces
    arguments: tuple[Any, ...]  # with NumPy arrays
    bytes: float  # that it has to move
    function: Callable[..., Any]
    definition: Callable[..., Any]  # the same, by functions of reference.py


def kernel_cases(tiny: bool) -> list[KernelCase]:
    """Each function of the contract that has a kernel, and the two fused ones of cuda/batch_norm.py."""
    rng = np.random.default_rng(0)
    n, h, c = (2, 6, 8) if tiny else (256, 32, 64)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    x, shortcut, dy = (normal(n, h, h, c) for _ in range(3))
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    weight, bias = rng.uniform(0.5, 1.5, c).astype(np.float32), normal(c)
    normalized = (mean, var, weight, bias, 1e-5)
    x[abs(reference.batch_norm_apply(x, *normalized)) < 1e-2] += 0.1  # no sign shall hang on a rounding
    y = reference.relu(reference.batch_norm_apply(x, *normalized))
    logits, labels = normal(n, 10), rng.integers(0, 10, n)
    probabilities = reference.cross_entropy(logits, labels, 0.1)[1]
    flat = [normal(1000 if tiny else 16_000_000) for _ in range(3)]
    images = rng.integers(0, 256, (n, h, h, 3), dtype=np.uint8)
    offsets = [rng.integers(0, 9, n), rng.integers(0, 9, n), rng.integers(0, 2, n).astype(bool)]
    choices = np.stack([rng.permutation(n), *offsets], axis=1).astype(np.int32)
    window = ((3, 3), (2, 2), (1, 1))
    pooled = reference.max_pool2d(x, *window)
    features, classifier = normal(n, c), normal(c, 10)
    adam = (1, 1e-3, 0.9, 0.999, 1e-8, 0.0, False)
    size, vector = x.nbytes, np.float32([0.5, 0.4, 0.3])
    gradients = "dx dweight dbias"
    contract = [
        ("batch_norm_statistics", "mean var", (x,), size),
        ("batch_norm_apply", "y", (x, *normalized), 2 * size),
        ("batch_norm_backward", gradients, (dy, x, mean, var, weight, 1e-5, True), 5 * size),
        ("column_sum", "sum", (x,), size),
        ("relu", "y", (x,), 2 * size),
        ("relu_backward", "dx", (dy, y), 3 * size),
        ("max_pool2d", "y", (x, *window), size + pooled.nbytes),
        ("max_pool2d_backward", "dx", (pooled, x, pooled, *window), 2 * size + 2 * pooled.nbytes),
        ("avg_pool2d", "y", (x, *window), size + pooled.nbytes),
        ("avg_pool2d_backward", "dx", (pooled, x.shape, *window), size + pooled.nbytes),
        ("global_avg_pool2d", "y", (x,), size),
        ("global_avg_pool2d_backward", "dx", (features, x), size),
        ("linear", "y", (features, classifier, logits[0]), features.nbytes),
        ("linear_backward", gradients, (logits, features, classifier, True, True), 2 * features.nbytes),
        ("cross_entropy", "loss probabilities", (logits, labels, 0.1), 2 * logits.nbytes),
        ("cross_entropy_backward", "dlogits", (np.float32(2), probabilities, labels, 0.1), 2 * logits.nbytes),
        ("sgd_update", "parameter gradient velocity", (*flat, 0.1, 0.9, 5e-4, True), 5 * flat[0].nbytes),
        ("adam_update", "parameter gradient mean square", (*flat, abs(flat[0]), *adam), 7 * flat[0].nbytes),
        ("crop_and_flip", "images", (images, *offsets, 4), 2 * images.nbytes),
        ("make_batch", "x y", (images, labels, choices, 0, n, 4, vector, vector), 5 * images.nbytes),
        ("normalize", "images", (images, vector, vector), 5 * images.nbytes),
    ]  # fmt: skip
    z = reference.relu(reference.batch_norm_apply(x, *normalized) + shortcut)
    fused = [
        KernelCase("normalise_add_relu", "z", (x, *normalized, None, True), 2 * size,
                   batch_norm.normalise_add_relu, _normalise_add_relu),
        KernelCase("normalise_add_relu + shortcut", "z", (x, *normalized, shortcut, True), 3 * size,
                   batch_norm.normalise_add_relu, _normalise_add_relu),
        KernelCase("normalise_add_relu_backward", gradients, (dy, x, mean, var, weight, bias), 5 * size,
                   _backward_by_cuda, _backward_by_definition),
        KernelCase("normalise_add_relu_backward + shortcut", f"{gradients} dshortcut",
                   (dy, x, mean, var, weight, None, z), 7 * size, _backward_by_cuda, _backward_by_definition),
    ]  # fmt: skip
    return [*fused, *(KernelCase(*case, getattr(cuda, case[0]), getattr(reference, case[0])) for case in contract)]


def _normalise_add_relu(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float,
    shortcut: np.ndarray | None, relu: bool,
) -> np.ndarray:  # fmt: skip
    z = reference.batch_norm_apply(x, mean, var, weight, bias, eps)
    z = z if shortcut is None else z + shortcut
    return reference.relu(z) if relu else z


def _backward_by_cuda(dz: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, z: Any = None) -> tuple:
    """The gradients behind batch norm and ReLU: by the bias without a shortcut, by z with one."""
    with_shortcut = z is not None
    found = batch_norm.normalise_add_relu_backward(
        dz, x, mean, var, weight, 1e-5, True, z=z, bias=bias, need_dshortcut=with_shortcut
    )
    return found if with_shortcut else found[:3]


def _backward_by_definition(
    dz: np.ndarray, x: np.ndarray, mean: np.ndarray, var: np.ndarray, weight: np.ndarray, bias: np.ndarray | None,
    z: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    output = reference.batch_norm_apply(x, mean, var, weight, bias, 1e-5) if z is None else z
    g = reference.relu_backward(dz, output)
    found = reference.batch_norm_backward(g, x, mean, var, weight, 1e-5, True)
    return found if z is None else (*found, g)


def kernel_times(cases: Cases) -> None:
    """Compare each kernel's results with the definition on the CPU; take its time and its share of a copy's bandwidth.
    Kernels that take activations are tried with bfloat16 too."""
    bandwidth = copy_bandwidth(cases.tiny)
    for case in kernel_cases(cases.tiny):
        cases.run(case.name, functools.partial(_kernel, case, bandwidth, cases.tiny, "float32"))
        if any(_is_activation(value) for value in case.arguments) and "bf16" in precisions():
            cases.run(f"{case.name} bf16", functools.partial(_kernel, case, bandwidth, cases.tiny, "bfloat16"))
        free_memory()


def _is_activation(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 4 and value.dtype == np.float32


def _kernel(case: KernelCase, bandwidth: float, tiny: bool, dtype: str) -> dict[str, Any]:
    import cupy

    host, device = [], []
    for value in case.arguments:
        if isinstance(value, (np.ndarray, np.float32)):
            value = np.asarray(value)
            stored = cupy.asarray(value)
            if dtype == "bfloat16" and _is_activation(value):
                stored = stored.astype(dtype)
                value = stored.get().astype(np.float32)
            device.append(stored)
            host.append(value.copy())
        else:
            device.append(value)
            host.append(value)
    got, expected = case.function(*device), case.definition(*host)
    if got is None:  # an update: what it has changed
        count = len(case.outputs.split())
        got, expected = tuple(a.copy() for a in device[:count]), tuple(host[:count])
    row = compared(got, expected, case.outputs, TOLERANCE["fp32" if dtype == "float32" else "bf16"])
    got = expected = None
    moved = case.bytes * (0.5 if dtype == "bfloat16" else 1)
    time = timed(lambda: case.function(*device), tiny)
    ms = time.milliseconds
    share = f"{1e5 * moved / ms / bandwidth:3.0f} % of a copy"
    share += " (in L2)" * (moved < IN_L2 and not tiny)
    what = case.name + " bf16" * (dtype == "bfloat16")
    text = f"{what:<44}{ms:8.3f} ms {moved / ms / 1e6:7,.0f} GB/s, {share}, {row['text']}{time.note}"
    return row | {"text": text, "milliseconds": ms, "rounds": time.rounds, "recorded": time.recorded, "bytes": moved}


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
