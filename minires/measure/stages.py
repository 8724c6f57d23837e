"""The stages of minires.kernels.cuda.check: what is measured on a GPU, and how.

Times are medians of several rounds between two events on the GPU; every stage runs its launches once before. A stage
writes its record after each row, so that a time limit costs no more than the row in hand.

Reading order: after roofline.py.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import minires as mr
from minires import kernels, models, optim
from minires.device import to_device
from minires.kernels import cuda, reference
from minires.kernels.cuda import blas, convolution, graph
from minires.kernels.geometry import Geometry
from minires.measure import roofline
from minires.train import DeviceStep

ROOT = Path(mr.__file__).parents[1]  # of the repository, if minires runs out of one


class Record:
    """What a stage has found so far, in its file."""

    def __init__(self, stage: str, path: Path, device: str, tiny: bool, seconds: float, data_dir: str):
        self.path, self.tiny, self.data_dir = path, tiny, data_dir
        self.end = time.monotonic() + seconds
        self.content: dict[str, Any] = {"stage": stage, "status": "running", "device": device, "tiny": tiny, "rows": []}

    def note_machine(self) -> None:
        """Which GPU, which versions, when."""
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(0)
        driver = cupy.cuda.runtime.driverGetVersion()
        self.content["machine"] = {
            "GPU": properties["name"].decode(),
            "driver": f"CUDA {driver // 1000}.{driver % 1000 // 10}",
            "CuPy": cupy.__version__,
            "minires": mr.__version__,
            "Python": platform.python_version(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        }
        self.write()

    def row(self, text: str, **values: Any) -> None:
        """One more row: `text` for the table, everything for the file."""
        self.content["rows"].append({"text": text, **values})
        self.write()

    def finish(self, status: str = "done", reason: str = "") -> None:
        """The last thing a stage does, unless it said "skipped" itself."""
        if self.content["status"] == "running":
            self.content |= {"status": status, "reason": reason}
        self.write()

    def write(self) -> None:
        """To the file, now."""
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")

    @property
    def time_left(self) -> float:
        """Seconds until the process will be stopped."""
        return self.end - time.monotonic()


def milliseconds(function: Callable[[], Any], tiny: bool, repeat: int = 10, rounds: int = 5) -> float:
    """The median time of one call, on the GPU, over `rounds` of `repeat` calls; run once before."""
    import cupy

    function()
    times = []
    for _ in range(1 if tiny else rounds):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        for _ in range(1 if tiny else repeat):
            function()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / (1 if tiny else repeat))
    return statistics.median(times)


def free_memory() -> None:
    """Give everything unused back to the GPU."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()


# Ceilings ---------------------------------------------------------------------------------------------------


def ceilings(record: Record) -> None:
    """What this GPU can do: the bandwidth of a copy, and the rate of large matrix products."""
    import cupy

    bandwidth = _copy_bandwidth(record.tiny)
    record.row(f"copy: {bandwidth / 1e9:,.0f} GB/s, read and written", bandwidth=bandwidth)
    n = 16 if record.tiny else 8192
    for precision in _precisions():
        dtype = "bfloat16" if precision == "bf16" else "float32"
        x, y = cupy.zeros((n, n), dtype=dtype), cupy.empty((n, n), dtype=dtype)
        m, out = blas.Matrix(x, n, n), blas.Matrix(y, n, n)
        ms = milliseconds(lambda: blas.matmul(m, m, out, tf32=precision == "tf32"), record.tiny, repeat=3)  # noqa: B023
        rate = 2 * n**3 / ms * 1e3
        record.row(f"{n}x{n} product, {precision}: {rate / 1e12:,.1f} TFLOP/s", precision=precision, rate=rate)


def _copy_bandwidth(tiny: bool) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    import cupy

    size = 1 << (12 if tiny else 28)  # floats
    a, b = cupy.zeros(size, dtype="float32"), cupy.empty(size, dtype="float32")
    return 2 * a.nbytes / (1e-3 * milliseconds(lambda: b.__setitem__(..., a), tiny))


def _precisions() -> tuple[str, ...]:
    try:
        kernels.use_precision("bf16")
    except RuntimeError:
        return ("fp32", "tf32")
    finally:
        kernels.use_precision("fp32")
    return ("fp32", "tf32", "bf16")


# Tests ------------------------------------------------------------------------------------------------------


def tests(record: Record) -> None:
    """The tests that need a GPU; in a trial they are only collected."""
    if not (ROOT / "tests").is_dir():
        record.finish("skipped", f"there are no tests in {ROOT}")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=line"]
    command += ["--collect-only"] if record.tiny else []
    for part in ("cuda or real", "not cuda and not real"):  # our own kernels first; the reference on CuPy after them
        done = subprocess.run([*command, "tests", "-k", part], cwd=ROOT, text=True, capture_output=True, check=False)
        lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
        record.row(f"{part}: {lines[-1]}", wrong=done.returncode != 0, output="\n".join(lines[-40:]))
        for line in [line for line in lines if line.startswith(("FAILED", "ERROR"))][:5]:
            record.row(line, wrong=True)


# Kernels ----------------------------------------------------------------------------------------------------


def kernel_cases(tiny: bool) -> list[tuple]:
    """(function of the contract, its arguments as NumPy arrays, the bytes it has to move); and a fourth where the CUDA
    function takes more than the contract has: that, by name."""
    rng = np.random.default_rng(0)
    n, h, c = (2, 6, 8) if tiny else (256, 32, 64)
    x, residual, dy = (rng.standard_normal((n, h, h, c)).astype(np.float32) for _ in range(3))
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    weight, bias = rng.uniform(0.5, 1.5, c).astype(np.float32), rng.standard_normal(c).astype(np.float32)
    normalized = (mean, var, weight, bias, 1e-5, None)
    x[abs(reference.batch_norm_apply(x, *normalized, False)) < 1e-3] += 0.1  # no sign shall hang on a rounding
    y = reference.batch_norm_apply(x, *normalized, True)
    logits, labels = rng.standard_normal((n, 10)).astype(np.float32), rng.integers(0, 10, n)
    flat = [rng.standard_normal(1000 if tiny else 40_000_000).astype(np.float32) for _ in range(3)]
    images = rng.integers(0, 256, (n, h, h, 3), dtype=np.uint8)
    offsets = [rng.integers(0, 9, n), rng.integers(0, 9, n), rng.integers(0, 2, n).astype(bool)]
    window = ((3, 3), (2, 2), (1, 1))
    pooled = reference.max_pool2d(x, *window)
    adam = (1, 1e-3, 0.9, 0.999, 1e-8, 0.0, False)
    size, vector = x.nbytes, np.float32([0.5, 0.4, 0.3])
    return [
        ("batch_norm_statistics", (x,), size),
        ("batch_norm_apply", (x, *normalized, True), 2 * size),
        ("batch_norm_apply", (x, mean, var, weight, bias, 1e-5, residual, True), 3 * size),
        ("batch_norm_backward", (dy, x, y, mean, var, weight, 1e-5, True, True, False), 5 * size, {"bias": bias}),
        ("batch_norm_backward", (dy, x, y, mean, var, weight, 1e-5, True, True, True), 7 * size),
        ("column_sum", (x,), size),
        ("relu", (x,), 2 * size),
        ("relu_backward", (dy, y), 3 * size),
        ("max_pool2d", (x, *window), size + pooled.nbytes),
        ("max_pool2d_backward", (pooled, x, pooled, *window), 2 * size + 2 * pooled.nbytes),
        ("avg_pool2d", (x, *window), size + pooled.nbytes),
        ("avg_pool2d_backward", (pooled, x.shape, *window), size + pooled.nbytes),
        ("global_avg_pool2d", (x,), size),
        ("cross_entropy", (logits, labels, 0.1), 2 * logits.nbytes),
        ("sgd_update", (*flat, 0.1, 0.9, 5e-4, True), 5 * flat[0].nbytes),
        ("adam_update", (*flat, abs(flat[0]), *adam), 7 * flat[0].nbytes),
        ("crop_and_flip", (images, *offsets, 4), 2 * images.nbytes),
        ("normalize", (images, vector, vector), 5 * images.nbytes),
    ]


def kernel_times(record: Record) -> None:
    """Each function of the contract: equal to the reference on the CPU, its time, and its share of a copy's
    bandwidth."""
    import cupy

    bandwidth = _copy_bandwidth(record.tiny)
    for name, arguments, moved, *more in kernel_cases(record.tiny):
        keywords = {key: cupy.asarray(value) for key, value in (more[0] if more else {}).items()}
        function = functools.partial(getattr(cuda, name), **keywords)
        device = [cupy.asarray(v) if isinstance(v, np.ndarray) else v for v in arguments]
        updates = name.endswith("_update")
        got = function(*device)
        got = device[0] if updates else got
        host = [v.copy() if isinstance(v, np.ndarray) else v for v in arguments]
        expected = getattr(reference, name)(*host)
        error = difference(got, host[0] if updates else expected)
        ms = milliseconds(lambda: function(*device), record.tiny)  # noqa: B023
        record.row(
            f"{name:<24}{ms:8.3f} ms {moved / ms / 1e6:7,.0f} GB/s, {1e5 * moved / ms / bandwidth:3.0f} % of a copy, "
            f"error {error:.0e}",
            name=name, milliseconds=ms, bytes=moved, error=error, wrong=not error < 1e-4,
        )  # fmt: skip


def difference(got: Any, expected: Any) -> float:
    """The largest error of any array in `got`, in L2 norm, relative to the expected one."""
    if not isinstance(expected, tuple):
        got, expected = (got,), (expected,)
    errors = []
    for a, b in zip(got, expected):
        if b is not None:
            a, b = to_device(a, "cpu").astype(np.float64), np.asarray(b, np.float64)
            errors.append(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)))
    return max(errors)


# Convolutions -----------------------------------------------------------------------------------------------


def convolution_times(record: Record) -> None:
    """Every convolution of the networks other than 1x1: forward and both gradients, with columns and without."""
    import cupy

    nets = [(20, 2)] if record.tiny else [(18, 512), (101, 512), (101, 128), (20, 128)]
    image, seen = (8 if record.tiny else 32), set()
    for depth, batch in nets:
        for layer in roofline.layers(models.build(depth, 10), image):
            shape = (layer.kernel, layer.channels, layer.outputs, layer.stride, layer.size)
            if layer.is_product or (batch, shape) in seen or layer.channels < 8:
                continue
            seen.add((batch, shape))
            if record.time_left < 5:
                record.row(f"no time for batch {batch}, {shape} and what follows")
                return
            _compare(record, cupy, layer, batch)
        if record.tiny and len(seen) > 1:
            break


def _compare(record: Record, cupy: Any, layer: roofline.Layer, batch: int) -> None:
    padding = tuple(k // 2 for k in layer.kernel)
    geometry = Geometry(layer.kernel, layer.stride, padding, (1, 1))
    weight = cupy.ones((*layer.kernel, layer.channels, layer.outputs), dtype="float32")
    for precision in _precisions():
        kernels.use_precision(precision)
        dtype = cuda.convolution.precision.activation()
        x = cupy.ones((batch, *layer.size, layer.channels), dtype=dtype)
        dy = cupy.ones((batch, *layer.out, layer.outputs), dtype=dtype)
        runs = {
            "forward": lambda: convolution.forward(x, weight, geometry),  # noqa: B023
            "dgrad": lambda: convolution.input_gradient(dy, x.shape, weight, geometry),  # noqa: B023
            "wgrad": lambda: convolution.weight_gradient(dy, x, weight.shape, geometry),  # noqa: B023
        }
        error = _disagreement(cupy, layer, geometry, dtype)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for algorithm in ("columns", "implicit"):
            convolution.algorithm = algorithm
            for name, run in runs.items():
                times[name].append(milliseconds(run, record.tiny, repeat=3, rounds=3))
        convolution.algorithm = "auto"
        rate = 2 * batch * layer.out[0] * layer.out[1] * layer.k * layer.outputs / 1e9  # GFLOP of one product
        text = ", ".join(f"{name} {a:.3f} / {b:.3f}" for name, (a, b) in times.items())
        best = rate / min(times["forward"])
        record.row(
            f"{precision} {layer.kernel[0]}x{layer.kernel[1]}/{layer.stride[0]} {layer.channels}->{layer.outputs} at "
            f"{layer.size[0]}, batch {batch}, columns / implicit ms: {text} ({best:.0f} TFLOP/s), "
            f"apart {error:.0e}",
            wrong=not error < {"fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}[precision], error=error, precision=precision,
            batch=batch, layer=layer.__dict__, milliseconds=times, gigaflop=rate,
        )  # fmt: skip
    kernels.use_precision("fp32")
    free_memory()


def _disagreement(cupy: Any, layer: roofline.Layer, geometry: Geometry, dtype: str) -> float:
    """How far apart the two algorithms are, on three random images: the largest relative difference of y, dx,
    dweight."""
    rng = np.random.default_rng(0)
    shapes = [(3, *layer.size, layer.channels), (*layer.kernel, layer.channels, layer.outputs)]
    shapes.append((3, *layer.out, layer.outputs))
    x, weight, dy = (cupy.asarray(rng.standard_normal(s).astype(np.float32)) for s in shapes)
    x, dy = x.astype(dtype), dy.astype(dtype)
    results = []
    for algorithm in ("columns", "implicit"):
        convolution.algorithm = algorithm
        y = convolution.forward(x, weight, geometry)
        dx = convolution.input_gradient(dy, x.shape, weight, geometry)
        results.append((y, dx, convolution.weight_gradient(dy, x, weight.shape, geometry)))
    convolution.algorithm = "auto"
    columns, implicit = results
    return difference(implicit, tuple(to_device(a, "cpu").astype(np.float64) for a in columns))


# Training steps ---------------------------------------------------------------------------------------------

STEP_CASES = [  # depth, batch, precision, in the order of what is most wanted
    (101, 512, "tf32"), (101, 128, "tf32"), (18, 512, "tf32"), (20, 128, "tf32"), (110, 128, "tf32"),
    (101, 512, "bf16"), (101, 512, "fp32"), (50, 128, "tf32"), (18, 512, "bf16"), (18, 512, "fp32"),
    (20, 128, "bf16"), (50, 512, "tf32"), (18, 128, "tf32"), (20, 512, "tf32"), (101, 128, "bf16"),
]  # fmt: skip


def step_cases(tiny: bool) -> Sequence[tuple[int, int, str]]:
    """What is timed."""
    return [(20, 2, "tf32")] if tiny else STEP_CASES


def step_times(record: Record) -> None:
    """Training steps of minires with SGD, eager and as a graph; peak memory; the floor for comparison."""
    import cupy

    size = 8 if record.tiny else 32
    known, gpu_name = _precisions(), record.content["machine"]["GPU"]
    for depth, batch, precision in step_cases(record.tiny):
        if precision not in known:
            continue
        for captured in (True, False):
            if record.time_left < 15:
                record.row("no time for the rest")
                return
            name = f"ResNet-{depth} batch {batch} {precision} {'graph' if captured else 'eager'}"
            kernels.use_precision(precision)
            try:
                model = models.build(depth, 10).to("cuda")
                step = DeviceStep(model, optim.SGD(model.parameters(), 0.1, 0.9), 0.0, graph=captured)
                x, y = cupy.ones((batch, size, size, 3), dtype="float32"), cupy.zeros(batch, dtype="int64")
                with step.active():
                    for _ in range(3):
                        step(x, y, 0.01)
                    ms = milliseconds(lambda: step(x, y, 0.01), record.tiny, repeat=5, rounds=5)  # noqa: B023
                    step.read()
                used = (cupy.get_default_memory_pool().total_bytes() + graph.pools_bytes()) / 1e6
                plain = models.build(depth, 10)
                floor = roofline.step_cost(plain, size, batch, precision, roofline.gpu_named(gpu_name), columns=False)
                record.row(
                    f"{name}: {ms:.2f} ms, {1e3 * batch / ms:,.0f} images/s, {used:,.0f} MB, "
                    f"the floor is {1e3 * floor.seconds:.2f} ms",
                    case=[depth, batch, precision], graph=captured, milliseconds=ms, megabytes=used,
                    floor_milliseconds=1e3 * floor.seconds,
                )  # fmt: skip
            except Exception as error:  # one case must not stop the others
                record.row(f"{name}: {type(error).__name__}: {error}"[:200], case=[depth, batch, precision], wrong=True)
            finally:
                step = model = x = y = None
                free_memory()
                kernels.use_precision("fp32")


def torch_times(record: Record) -> None:
    """The same steps in PyTorch eager, channels_last, at the same precision (bf16: autocast)."""
    try:
        import torch
    except ImportError:
        record.finish("skipped", "PyTorch is not installed")
        return
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import torch_networks
    except ImportError:
        record.finish("skipped", f"there is no examples/torch_networks.py in {ROOT}")
        return
    device = "cuda" if record.content["device"] == "cuda" else "cpu"
    record.content["machine"]["PyTorch"] = torch.__version__
    size = 8 if record.tiny else 32
    for depth, batch, precision in step_cases(record.tiny):
        if record.time_left < 15:
            record.row("no time for the rest")
            return
        name = f"torch ResNet-{depth} batch {batch} {precision}"
        try:
            ms, used = _torch_step(torch, torch_networks, device, depth, batch, precision, size, record.tiny)
            record.row(
                f"{name}: {ms:.2f} ms, {used:,.0f} MB", case=[depth, batch, precision], milliseconds=ms, megabytes=used
            )
        except Exception as error:
            record.row(f"{name}: {type(error).__name__}: {error}"[:200], case=[depth, batch, precision])


def _torch_step(
    torch: Any, networks: Any, device: str, depth: int, batch: int, precision: str, size: int, tiny: bool
) -> tuple[float, float]:
    """Milliseconds of a step, and the peak of allocated memory in MB."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    model = networks.build(depth).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    x = torch.ones(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        autocast = torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        with autocast:
            loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(1 if tiny else 5):
        step()
    times = []
    for _ in range(1 if tiny else 5):
        wait()
        start = time.perf_counter()
        for _ in range(1 if tiny else 5):
            step()
        wait()
        times.append((time.perf_counter() - start) / (1 if tiny else 5))
    used = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return 1e3 * statistics.median(times), used


# Training ---------------------------------------------------------------------------------------------------


def training(record: Record) -> None:
    """examples/train_cifar.py itself, as a user would call it: ResNet-18, then ResNet-101 with the time that is
    left."""
    script = ROOT / "examples" / "train_cifar.py"
    if not script.is_file():
        record.finish("skipped", f"there is no {script}")
        return
    if record.content["device"] == "cpu":
        record.finish("skipped", "training on the simulated GPU would take hours; the steps above are the trial")
        return
    if not list(Path(record.data_dir).glob("cifar-10*")):
        record.finish("skipped", f"there are no CIFAR-10 files in {record.data_dir}")
        return
    for depth, share in ((18, 0.35), (101, 1.0)):
        minutes = share * (record.time_left - 20) / 60 / 1.3  # the evaluation may take a quarter again
        if minutes < 0.5:
            record.row(f"ResNet-{depth}: no time was left")
            continue
        out = record.path.parent / f"resnet{depth}-{int(time.time())}"
        command = [
            sys.executable, str(script), "--depth", str(depth), "--data", "cifar10", "--data-dir", record.data_dir,
            "--batch-size", "512", "--epochs", "24", "--max-minutes", f"{minutes:.2f}", "--out", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["said nothing"]
        record.row(lines[-1][:200], depth=depth, wrong=done.returncode != 0)


STAGES: dict[str, Callable[[Record], None]] = {
    "ceilings": ceilings,
    "tests": tests,
    "kernels": kernel_times,
    "convolutions": convolution_times,
    "steps": step_times,
    "torch": torch_times,
    "training": training,
}
