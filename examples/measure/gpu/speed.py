"""The stages that measure: steps, convolutions, torch, ceilings, training.

Times are medians of several rounds, between two events on the GPU, on random numbers (tools.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.measure import roofline
from examples.measure.gpu.cases import Cases, Skipped
from examples.measure.gpu.find import LR, compared, step_losses
from examples.measure.gpu.tools import (
    Time,
    around,
    copy_bandwidth,
    dtype_of,
    elapsed,
    precisions,
    random,
    timed,
)  # fmt: skip
from minires import kernels, models, reference
from minires.cuda import blas, convolution, graph, launch
from minires.cuda.check import TOLERANCE, computing
from minires.reference import Geometry

# Training steps ---------------------------------------------------------------------------------------------

STEP_CASES = [  # depth, batch, precision; the cheapest first, then in the order of what is most wanted
    (20, 128, "tf32"), (101, 512, "tf32"), (18, 512, "tf32"), (101, 128, "tf32"), (110, 128, "tf32"),
    (101, 512, "bf16"), (18, 512, "bf16"), (101, 512, "fp32"), (50, 128, "tf32"), (101, 128, "bf16"),
    (20, 128, "bf16"), (18, 512, "fp32"), (50, 512, "tf32"), (18, 128, "tf32"), (20, 512, "tf32"),
]  # fmt: skip
PROFILED = [(101, 512, "tf32"), (101, 512, "bf16"), (18, 512, "tf32")]
COMPILED_CASES = [(18, 512, "tf32"), (20, 128, "tf32"), (101, 512, "tf32")]  # by torch.compile: minutes, perhaps


def step_cases(tiny: bool) -> Sequence[tuple[int, int, str]]:
    """What is timed."""
    return [(20, 2, "tf32")] if tiny else STEP_CASES


def step_times(cases: Cases) -> None:
    """Training steps with SGD, as a graph and eager: times, peak memory, the floor for comparison. The steps must
    reduce the loss, and graph and eager must give the same losses."""
    losses: dict[tuple, list[float]] = {}
    for depth, batch, precision in step_cases(cases.tiny):
        if precision in precisions():
            for captured in (True, False):
                name = f"ResNet-{depth} batch {batch} {precision} {'graph' if captured else 'eager'}"
                run = functools.partial(_step, cases, (depth, batch, precision), captured, name, losses)
                cases.run(name, run, needs=15, limit=24)
                graph.free_memory()
            if (depth, batch, precision) in PROFILED or cases.tiny:
                name = f"ResNet-{depth} batch {batch} {precision}, kernel by kernel"
                cases.run(name, functools.partial(_profile, cases, (depth, batch, precision), name), limit=24)
                graph.free_memory()


def _step(cases: Cases, key: tuple[int, int, str], captured: bool, name: str, losses: dict) -> dict[str, Any]:
    import cupy

    depth, batch, precision = key
    size = 8 if cases.tiny else 32
    found, step, x, y = step_losses(depth, batch, precision, size, captured, steps=6)
    with computing(precision), step.active():
        times = _milliseconds_of_steps(step, x, y, cases.tiny)
        found += [loss for loss, _ in step.read()]
    ms = statistics.median(times)
    used = (cupy.get_default_memory_pool().total_bytes() + graph.pools_bytes()) / 1e6
    floor = _floor(depth, size, batch, precision, cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    text = (
        f"{name}: {ms:.2f} ms, {1e3 * batch / ms:,.0f} images/s, {used:,.0f} MB, the floor is {1e3 * floor:.2f} ms, "
        f"loss {found[0]:.3f} to {found[-1]:.3f}"
    )
    wrong = not np.isfinite(found).all() or found[-1] >= found[0]
    if wrong:
        text += ": IT DOES NOT LEARN"
    other = losses.setdefault(key, found)
    if other != found:
        first = next(i for i, (a, b) in enumerate(zip(other, found)) if a != b)
        text += f"; graph and eager DIFFER from step {first + 1} on: {other[first]!r}, {found[first]!r}"
        wrong = True
    return {
        "text": text, "key": key, "graph": captured, "milliseconds": ms, "rounds": times, "megabytes": used,
        "losses": found, "floor_milliseconds": 1e3 * floor, "wrong": wrong,
    }  # fmt: skip


def _milliseconds_of_steps(step: Any, x: Any, y: Any, tiny: bool) -> list[float]:
    """The time of a training step in several rounds, inside `step.active()`."""
    rounds, repeat = (1, 1) if tiny else (5, 5)

    def steps() -> None:
        for _ in range(repeat):
            step(x, y, LR)

    return [elapsed(*around(steps)) / repeat for _ in range(rounds)]


def _profile(cases: Cases, key: tuple[int, int, str], name: str) -> dict[str, Any]:
    """The time of an eager step by kernel, or by shape of product, from two events around every launch."""
    depth, batch, precision = key
    _, step, x, y = step_losses(depth, batch, precision, 8 if cases.tiny else 32, False, steps=3)
    with computing(precision), step.active(), _events() as events:
        step(x, y, LR)
    sums: dict[str, list[float]] = {}
    for what, begin, end in events:
        found = sums.setdefault(what, [0, 0.0])
        found[0], found[1] = found[0] + 1, found[1] + elapsed(begin, end)
    ordered = sorted(sums.items(), key=lambda item: -item[1][1])
    total = sum(ms for _, ms in sums.values())
    most = ", ".join(f"{what} {ms:.2f} ({count})" for what, (count, ms) in ordered[:7])
    return {"text": f"{name}, {total:.1f} ms in {len(events)} launches: {most}, ...", "launches": ordered}


@contextlib.contextmanager
def _events() -> Iterator[list[tuple[str, Any, Any]]]:
    """Inside, every launch of our kernels and every product is noted: its name, and an event before and after it."""
    events: list[tuple[str, Any, Any]] = []
    launched, multiplied = launch.Kernel.__call__, blas.Handle.gemm

    def kernel(self: launch.Kernel, *shape: Any, **arguments: Any) -> None:
        events.append((self.name, *around(lambda: launched(self, *shape, **arguments))))

    def gemm(self: blas.Handle, a: blas.Matrix, b: blas.Matrix, c: blas.Matrix, count: int, *rest: Any) -> None:
        what = f"gemm {a.shape[0]}x{a.shape[1]}x{b.shape[1]}" + f" x{count}" * (count > 1)
        events.append((what, *around(lambda: multiplied(self, a, b, c, count, *rest))))

    launch.Kernel.__call__, blas.Handle.gemm = kernel, gemm
    try:
        yield events
    finally:
        launch.Kernel.__call__, blas.Handle.gemm = launched, multiplied


@functools.cache
def _floor(depth: int, size: int, batch: int, precision: str, gpu: str) -> float:
    model = models.build(depth, 10, "cifar")
    return roofline.step_cost(model, size, batch, precision, roofline.gpu_named(gpu), columns=False).seconds


# Convolutions -----------------------------------------------------------------------------------------------


def convolution_times(cases: Cases) -> None:
    """Every convolution of the networks other than 1x1: times of forward and both gradients, with and without columns,
    and their distance from float64."""
    large = roofline.Layer("one large", (3, 3), 256, 256, (1, 1), (8, 8), (8, 8))
    if not cases.tiny:  # long sums, many tiles, several waves of blocks
        for precision in precisions():
            run = functools.partial(_convolution_is_right, large, 128, precision)
            cases.run(f"{_layer_name(large)}, batch 128, {precision}, against float64", run)
    nets = [(20, 2)] if cases.tiny else [(101, 512), (18, 512), (20, 128), (101, 128)]
    layers = list(_layers(nets, 8 if cases.tiny else 32))
    for precision in sorted(precisions(), key=["tf32", "bf16", "fp32"].index):  # in fp32 the choice is clear
        for batch, layer in layers[:2] if cases.tiny else layers:
            name = f"{precision} {_layer_name(layer)}, batch {batch}"
            cases.run(name, functools.partial(_convolution, cases, layer, batch, precision, name))
            graph.free_memory()


def _layers(nets: Sequence[tuple[int, int]], image: int) -> Iterator[tuple[int, roofline.Layer]]:
    """(batch, layer) of the convolutions that are no plain product, each shape once; the stems, of 3 channels, are left
    out."""
    seen = set()
    for depth, batch in nets:
        for layer in roofline.layers(models.build(depth, 10, "cifar"), image):
            shape = (batch, layer.kernel, layer.channels, layer.outputs, layer.stride, layer.size)
            if not layer.is_product and shape not in seen and layer.channels >= 8:
                seen.add(shape)
                yield batch, layer


def _layer_name(layer: roofline.Layer) -> str:
    kernel, stride = layer.kernel, layer.stride[0]
    return f"{kernel[0]}x{kernel[1]}/{stride} {layer.channels}->{layer.outputs} at {layer.size[0]}"


def _geometry(layer: roofline.Layer) -> Geometry:
    return Geometry(layer.kernel, layer.stride, tuple(k // 2 for k in layer.kernel), (1, 1))


def _products(layer: roofline.Layer, batch: int, precision: str) -> dict[str, Any]:
    """The three products of a layer, as functions."""
    geometry = _geometry(layer)
    dtype = dtype_of(precision)
    x, dy = random((batch, *layer.size, layer.channels), dtype, 0), random((batch, *layer.out, layer.outputs), dtype, 1)
    weight = random((*layer.kernel, layer.channels, layer.outputs), "float32", 2)
    return {
        "forward": lambda: convolution.forward(x, weight, geometry),
        "dgrad": lambda: convolution.input_gradient(dy, x.shape, weight, geometry),
        "wgrad": lambda: convolution.weight_gradient(dy, x, weight.shape, geometry),
    }


def _algorithms(precision: str) -> tuple[str, ...]:
    """The ways to convolve."""
    return ("columns", "implicit", "async") if precision == "tf32" else ("columns", "implicit")


def _convolution_is_right(layer: roofline.Layer, batch: int, precision: str) -> dict[str, Any]:
    """All algorithms against float64 on the host."""
    expected = _in_double(layer, batch, dtype_of(precision))
    products, rows = _products(layer, batch, precision), []
    for algorithm in _algorithms(precision):
        with computing(precision, algorithm):
            got = tuple(run() for run in products.values())
        names = " ".join(f"{algorithm}:{name}" for name in ("y", "dx", "dweight"))
        rows.append(compared(got, expected, names, TOLERANCE[precision]))
    text = f"{precision} {_layer_name(layer)}, batch {batch}: " + ", ".join(row["text"] for row in rows)
    found = [output for row in rows for output in row["outputs"]]
    return {"text": text, "outputs": found, "wrong": any(row["wrong"] for row in rows)}


@functools.cache
def _in_double(layer: roofline.Layer, batch: int, dtype: str) -> tuple[np.ndarray, ...]:
    """y, dx and dweight in float64, of the same numbers as in `_products`, rounded to `dtype` as there."""
    shapes = [(batch, *layer.size, layer.channels), (batch, *layer.out, layer.outputs)]
    x, dy = (random(shape, dtype, seed).get().astype(np.float64) for seed, shape in enumerate(shapes))
    weight = random((*layer.kernel, layer.channels, layer.outputs), dtype, 2).get().astype(np.float64)
    geometry = _geometry(layer)
    options = {"stride": geometry.stride, "padding": geometry.padding, "dilation": (1, 1), "groups": 1}
    y = reference.conv2d(x, weight, None, **options)
    return y, *reference.conv2d_backward(dy, x, weight, **options, need_dx=True, need_dweight=True)


def _convolution(cases: Cases, layer: roofline.Layer, batch: int, precision: str, name: str) -> dict[str, Any]:
    right = _convolution_is_right(layer, 3, precision)
    if right["wrong"]:
        return right
    products = _products(layer, batch, precision)
    times: dict[str, list[Time]] = {product: [] for product in products}
    for algorithm in _algorithms(precision):
        with computing(precision, algorithm):
            for product, run in products.items():
                times[product].append(timed(run, cases.tiny, repeat=3, rounds=3))
    rate = 2 * batch * layer.out[0] * layer.out[1] * layer.k * layer.outputs / 1e9  # GFLOP of one product
    both = {product: [time.milliseconds for time in pair] for product, pair in times.items()}
    text = ", ".join(f"{product} " + " / ".join(f"{ms:.3f}" for ms in each) for product, each in both.items())
    text = f"{name}, {' / '.join(_algorithms(precision))} ms: {text} ({rate / min(both['forward']):.0f} TFLOP/s)"
    text += next((time.note for pair in times.values() for time in pair if not time.recorded), "")
    return right | {
        "text": text, "precision": precision, "batch": batch, "layer": layer.__dict__, "milliseconds": both,
        "rounds": {product: [time.rounds for time in pair] for product, pair in times.items()}, "gigaflop": rate,
    }  # fmt: skip


# PyTorch ----------------------------------------------------------------------------------------------------


def torch_times(cases: Cases) -> None:
    """The same steps in PyTorch, channels last, in the same precision (bf16: autocast): eager, and compiled."""
    try:
        import torch
    except ImportError:
        raise Skipped("PyTorch is not installed") from None
    from examples.measure import torch_networks

    eager = step_cases(cases.tiny)
    compiled = [] if cases.tiny else COMPILED_CASES
    order = [(eager[:5], False), (compiled[:1], True), (eager[5:8], False), (compiled[1:], True), (eager[8:], False)]
    for key, compiled in [(key, is_compiled) for keys, is_compiled in order for key in keys]:
        name = "torch{} ResNet-{} batch {} {}".format(".compile" if compiled else "", *key)
        run = functools.partial(_torch_step, torch, torch_networks, cases, key, compiled, name)
        cases.run(name, run, needs=40 if compiled else 8, limit=90 if compiled else 24)


def _torch_step(
    torch: Any, networks: Any, cases: Cases, key: tuple[int, int, str], compiled: bool, name: str
) -> dict[str, Any]:
    """Milliseconds of a step, and the peak of the memory that its pool has taken, in MB."""
    depth, batch, precision = key
    device, size = "cpu" if cases.device == "cpu" else "cuda", 8 if cases.tiny else 32
    warm_up, rounds, repeat = (1, 1, 1) if cases.tiny else (5, 5, 5)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = networks.build(depth).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    x = torch.randn(batch, 3, size, size).to(device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,)).to(device)
    network = torch.compile(model) if compiled else model

    def step() -> Any:
        optimizer.zero_grad()
        autocast = torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        with autocast:
            loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        return loss

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first = float(step().detach())
    for _ in range(warm_up):
        step()
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        for _ in range(repeat):
            loss = step()
        wait()
        times.append((time.perf_counter() - start) / repeat)
    ms = 1e3 * statistics.median(times)
    used = torch.cuda.max_memory_reserved() / 1e6 if device == "cuda" else 0.0  # the pool's total, as ours
    text = f"{name}: {ms:.2f} ms, {used:,.0f} MB, loss {first:.3f} to {float(loss.detach()):.3f}"
    return {
        "text": text, "key": key, "compiled": compiled, "milliseconds": ms, "rounds": [1e3 * t for t in times],
        "megabytes": used, "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip


# Ceilings ---------------------------------------------------------------------------------------------------


def ceilings(cases: Cases) -> None:
    """The limits of this GPU: the bandwidth of a copy, and the rate of large matrix products."""
    cases.run("copy", functools.partial(_copy, cases.tiny))
    for precision in precisions():
        cases.run(f"product {precision}", functools.partial(_product, precision, 16 if cases.tiny else 8192))


def _copy(tiny: bool) -> dict[str, Any]:
    bandwidth = copy_bandwidth(tiny)
    return {"text": f"copy: {bandwidth / 1e9:,.0f} GB/s, read and written", "bandwidth": bandwidth}


def _product(precision: str, n: int) -> dict[str, Any]:
    import cupy

    dtype = dtype_of(precision)
    a, b, c = random((n, n), dtype, 0), random((n, n), dtype, 1), cupy.empty((n, n), dtype=dtype)
    factors = [blas.Matrix(array, n, n) for array in (a, b, c)]
    time = timed(lambda: blas.matmul(*factors, tf32=precision == "tf32"), tiny=n < 100, repeat=3)
    rate = 2 * n**3 / time.milliseconds * 1e3
    text = f"{n}x{n} product, {precision}: {rate / 1e12:,.1f} TFLOP/s{time.note}"
    return {"text": text, "precision": precision, "rate": rate, "rounds": time.rounds}


# Training ---------------------------------------------------------------------------------------------------


def training(cases: Cases) -> None:
    """examples/train_cifar.py itself, as a user would call it: ResNet-18, then ResNet-101 with the time that is left.

    Runs as many whole epochs as fit: the learning rate then completes its cycle.
    """
    if cases.device == "cpu":
        raise Skipped("training on the simulated GPU would take hours; the steps are the trial")
    if not list(cases.data_dir.glob("cifar-10*")):
        raise Skipped(f"there are no CIFAR-10 files in {cases.data_dir}")
    for depth, share, needs in ((18, 0.35, 40), (101, 1.0, 60)):
        run = functools.partial(_train, cases, depth, share)
        cases.run(f"ResNet-{depth}", run, needs=needs, limit=cases.time_left)


def _train(cases: Cases, depth: int, share: float) -> dict[str, Any]:
    precision = kernels.default_precision()
    _, step, x, y = step_losses(depth, 512, precision, 32, graph=True, steps=4)
    with computing(precision), step.active():
        ms = statistics.median(_milliseconds_of_steps(step, x, y, cases.tiny))
    step = x = y = None
    graph.free_memory()
    epochs, minutes = epochs_that_fit(depth, ms, share * (cases.time_left - 10))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"resnet{depth}"
        command = [
            sys.executable, "-m", "examples.train_cifar", "--depth", str(depth), "--data", "cifar10",
            "--data-dir", str(cases.data_dir), "--batch-size", "512", "--epochs", str(epochs),
            "--max-minutes", f"{minutes:.2f}", "--out", str(out),
        ]  # fmt: skip
        status, text = _output(command, cases.time_left - 5)
        files = {name: out / name for name in ("config.json", "results.json", "log.jsonl")}
        found = {name: path.read_text() for name, path in files.items() if path.exists()}
        for picture in out.glob("*.png"):
            shutil.copy(picture, cases.path.parent / f"{out.name}-{picture.name}")
    log = [json.loads(line) for line in found.get("log.jsonl", "").splitlines()]
    values: dict[str, Any] = {"epochs": epochs, "step_milliseconds": ms, "command": " ".join(command[1:]), "log": log}
    values |= {name: json.loads(text) for name, text in found.items() if name.endswith(".json")}
    last = (text.strip().splitlines() or ["it said nothing"])[-1][:250]
    if status == 0:
        return {"text": last, **values}
    so_far = f"; {100 * log[-1]['test_accuracy']:.2f} % after {log[-1]['epoch']} epochs" if log else ""
    return {"text": f"ResNet-{depth}: {status}: {last}{so_far}", "wrong": True, "traceback": text[-4000:], **values}


def epochs_that_fit(depth: int, step_milliseconds: float, seconds: float) -> tuple[int, float]:
    """(whole epochs of CIFAR-10 at batch 512, minutes of training after which to stop at the latest) for a run that may
    take so many seconds from its start to its end."""
    around = 20  # to read the data and compile; the last evaluation and the pictures
    saving = 0.5 if depth == 18 else 2.5  # a checkpoint after each epoch
    epoch = 98 * 1e-3 * step_milliseconds * 1.15 + 1 + saving  # 50,000 images, and an evaluation
    return max(1, int((seconds - around) / epoch)), max(seconds - around, 6) / 60


def _output(command: list[str], seconds: float) -> tuple[int | str, str]:
    """(exit status, what it wrote) of a command; "stopped after N s" in the place of the status if it took longer."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        try:
            done = subprocess.run(command, stdout=file, stderr=file, timeout=seconds, check=False)
            status: int | str = done.returncode
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        file.seek(0)
        return status, file.read()


STAGES = {
    "steps": step_times,
    "convolutions": convolution_times,
    "torch": torch_times,
    "ceilings": ceilings,
    "training": training,
}
