"""The claims of docs/fast-cpu.md, each measured by itself: the gain of a method, the time of each part of a step.

    python examples/measure/cpu_details.py                                  # everything: about two minutes
    python examples/measure/cpu_details.py --only products calls            # some of it
    python examples/measure/cpu_details.py --json docs/results/cpu/details.json     # the numbers too
    python examples/measure/cpu_details.py --show docs/results/cpu/details.json     # print the tables, measure nothing

    products      matrix products: packed by OpenBLAS, in small pieces, in small pieces of panels (matmul.py)
    rounding      im2col and Winograd against the result in float64 (winograd.py)
    losses        the losses of a training, CPU kernels against the reference
    calls         NumPy calls with the same result, at different speed (elementwise.py)
    wakeup        the delay until a worker starts on its part (workers.py)
    memory        a step with and without memory that stays with the process (workers.py)
    activations   the arrays that a network keeps for backward, with and without fused branches (branch.py)
    profile       a training step, by kernel
    choices       a training step with another bound in plan.py

The programs measure the package's own code wherever the package has a function. Times are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import chain
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

import minires as mr
import minires.functional as F
from examples.measure import benchmark
from minires import kernels, nn, reference
from minires.cpu import (
    batch_norm,
    convolution,
    elementwise,
    matmul,
    optimizers,
    plan,
    pooling,
    winograd,
    workers,
)

branch = importlib.import_module("minires.cpu.branch")  # in the package, that name is the function

Rows = list[dict[str, Any]]  # what a section measured, as it goes into the file
Table = list[list[str]]  # its cells, the header first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
                        help=f"of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=0.5, help="for each product and call; steps are counted")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--show", metavar="FILE", help="print the tables of a file of --json, measure nothing")
    args = parser.parse_args()
    if args.show:
        for name, rows in json.loads(Path(args.show).read_text())["sections"].items():
            print(f"{name}\n\n{table(name, rows)}\n")
        return
    sections = {}
    for name in args.only:
        sections[name] = SECTIONS[name][0](args.seconds)
        print(f"{name}\n\n{table(name, sections[name])}\n", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({**benchmark.about(), "sections": sections}, indent=1) + "\n")


def table(name: str, rows: Rows) -> str:
    """The table of a section, for a page."""
    return benchmark.markdown(SECTIONS[name][1](rows))


@contextlib.contextmanager
def changed(module: ModuleType, **values: Any) -> Iterator[None]:
    """The module with other values in it."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def normal(*shape: int) -> np.ndarray:
    """The same standard normal numbers every time, in float32."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# --- matrix products


PRODUCTS = [  # how many, rows, K, columns
    (1, 1024, 256, 1024),
    (1, 1024, 1024, 256),
    (1, 256, 512, 2048),
    (36, 64, 256, 256),
    (36, 16, 512, 512),
]
WAYS = ("packed", "small", "panels")


def products(seconds: float) -> Rows:
    """Every worker multiplies matrices of its own, as the kernels do; the ways take turns."""
    measured = []
    for times, rows, k, columns in PRODUCTS:
        weights = normal(times, k, columns)
        width = matmul.panel_width(k, columns)
        with changed(matmul, CLOSE=columns):  # no weight is copied
            small = [matmul.panels(weight, width) for weight in weights]
        with changed(matmul, CLOSE=0):  # every weight is
            panels = [matmul.panels(weight, width) for weight in weights]
        ways = {
            "packed": (np.matmul, weights),
            "small": (matmul.matmul, small),
            "panels": (matmul.matmul, panels),
        }
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(5):
            for way, (function, factors) in ways.items():
                took[way] += multiply(function, (times, rows, k), factors, columns, seconds / 5)
        flops = 2 * times * rows * k * columns
        speed = {way: flops / statistics.median(took[way]) / 1e9 for way in WAYS}
        measured.append({"times": times, "rows": rows, "k": k, "columns": columns, "gflops": speed})
    return measured


def multiply(function: Callable, shape: tuple, factors: list[np.ndarray], columns: int, seconds: float) -> list[float]:
    """The seconds of each round of function(a, factor, out) for all factors, by all workers at once."""

    def task(begin: int, end: int) -> list[float]:
        a, out = normal(*shape), np.empty((*shape[:2], columns), np.float32)
        return repeated(lambda: [function(*each) for each in zip(a, factors, out)], seconds)

    return list(chain(*workers.parallel(task, workers.count)))


def repeated(call: Callable[[], Any], seconds: float) -> list[float]:
    """The seconds of each of many calls, after one that is not counted."""
    call()
    took, end = [], time.perf_counter() + seconds
    while len(took) < 3 or time.perf_counter() < end:
        took.append(seconds_of(call))
    return took


def products_table(measured: Rows) -> Table:
    cells = [["product, GFLOP/s a core", "packed by OpenBLAS", "small, weight as it is", "small, weight in panels"]]
    for row in measured:
        name = f"{row['rows']} x {row['k']} x {row['columns']}"
        name = name if row["times"] == 1 else f"{row['times']} times {name} (Winograd)"
        cells.append([name, *(f"{row['gflops'][way]:.0f}" for way in WAYS)])
    return cells


# --- rounding, and what it does to a training


def rounding(seconds: float) -> Rows:
    """Relative errors (L2) of a 3x3 convolution as it stands in ResNet-18, with ReLU-like inputs."""
    measured = []
    for channels, size, batch in (
        (64, 32, 4 * workers.count),
        (256, 8, 4 * workers.count),
        (512, 4, 16 * workers.count),
    ):
        rng = np.random.default_rng(0)
        x = np.maximum(rng.standard_normal((batch, size, size, channels), np.float32), 0)
        weight = rng.standard_normal((3, 3, channels, channels), np.float32) * np.float32((2 / 9 / channels) ** 0.5)
        dy = rng.standard_normal(x.shape, np.float32)
        geometry = ((1, 1), (1, 1), (1, 1), 1)  # stride, padding, dilation, groups

        def both(backend: ModuleType, x: Any, weight: Any, dy: Any, geometry: tuple = geometry) -> list[np.ndarray]:
            y = backend.conv2d(x, weight, None, *geometry)
            return [y, backend.conv2d_backward(dy, x, weight, *geometry, True, True)[1]]

        exact = both(reference, *(array.astype(np.float64) for array in (x, weight, dy)))
        row: dict[str, Any] = {"channels": channels, "size": size, "batch": batch}
        for name, choice in (("im2col", "direct"), ("winograd", "auto")):
            with changed(plan, choice=choice):
                got = both(mr.cpu, x, weight, dy)
            row[name] = [float(np.linalg.norm(g - e) / np.linalg.norm(e)) for g, e in zip(got, exact)]
        measured.append(row)
    return measured


def rounding_table(measured: Rows) -> Table:
    cells = [["channels", "im2col, forward", "Winograd, forward", "im2col, weight gradient",
              "Winograd, weight gradient"]]  # fmt: skip
    for row in measured:
        errors = [row[name][i] for i in range(2) for name in ("im2col", "winograd")]
        cells.append([str(row["channels"]), *map(short, errors)])
    return cells


NUDGE = 1e-6  # of one weight, relative: so far apart are two trainings that no kernel can tell from each other
STEPS = (1, 2, 5, 10)  # shown of the ten


def losses(seconds: float) -> Rows:
    """The first losses of ResNet-20, batch 32, SGD, on random images that it learns by heart."""
    images, labels = normal(32, 32, 32, 3), np.arange(32) % 10

    def train(nudge: float) -> list[float]:
        mr.manual_seed(0)
        model = mr.models.resnet20()
        next(iter(model.parameters())).data.flat[0] *= 1 + nudge
        optimizer, values = mr.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), []
        for _ in range(max(STEPS)):
            loss = F.cross_entropy(model(mr.Tensor(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.item()))
        return values

    measured = []
    for name, backend, choice, nudge in (
        ("reference", "reference", "auto", 0),
        ("reference, one weight moved by a millionth of itself", "reference", "auto", NUDGE),
        ("CPU kernels, without Winograd", "auto", "direct", 0),
        ("CPU kernels", "auto", "auto", 0),
    ):
        kernels.use(backend)
        try:
            with changed(plan, choice=choice):
                measured.append({"kernels": name, "losses": train(nudge)})
        finally:
            kernels.use("auto")
    return measured


def losses_table(measured: Rows) -> Table:
    first, *others = measured
    cells = [["loss", *(f"step {step}" for step in STEPS)]]
    cells.append([first["kernels"], *(f"{first['losses'][step - 1]:.6f}" for step in STEPS)])
    for row in others:
        apart = (abs(row["losses"][step - 1] - first["losses"][step - 1]) for step in STEPS)
        cells.append([row["kernels"], *(f"± {short(difference)}" for difference in apart)])
    return cells


def short(number: float) -> str:
    """A number as text, such as 2.4e-7."""
    return f"{number:.1e}".replace("e-0", "e-") if number else "0"


# --- calls


def calls(seconds: float) -> Rows:
    """The obvious call and the package's call, on 65,536 floats."""
    rng = np.random.default_rng(0)
    x, y, dy = rng.standard_normal((3, 4096, 16), np.float32)
    y, out = np.maximum(y, 0), np.empty_like(x)
    r = elementwise.repeats(*x.shape)
    wide, wide_out, image = elementwise.wide(x, r), elementwise.wide(out, r), x.reshape(16, 16, 16, 16)
    row, wide_row, ones = x[0].copy(), np.tile(x[0], r), matmul.ones(4096)
    padded = np.zeros((4, 34, 34, 16), np.float32)
    shape, steps = (4, 32, 32, 3, 48), (*padded.strides[:3], padded.strides[1], 4)  # see convolution.columns
    strided = np.lib.stride_tricks.as_strided
    pairs = {
        "ReLU": {
            "`np.maximum(x, 0)`": lambda: np.maximum(x, 0, out=out),
            "`relu_in_place`, against an array of zeros": lambda: elementwise.relu_in_place(wide),
        },
        "gradient of a ReLU": {
            "`dy * (y > 0)`": lambda: reference.relu_backward(dy, y),
            "`mask_gradient`, on the bits": lambda: elementwise.mask_gradient(dy, y, out),
        },
        "the same": {
            "`np.copyto(out, dy, where=y > 0)`": lambda: np.copyto(out, dy, where=y > 0),
            "`mask_gradient`, on the bits": lambda: elementwise.mask_gradient(dy, y, out),
        },
        "16 channels, each times its factor": {
            "`x * scale`, rows of 16": lambda: np.multiply(x, row, out=out),
            "wide rows": lambda: np.multiply(wide, wide_row, out=wide_out),
        },
        "sum over all positions": {
            "`x.sum(axis=(0, 1, 2))`": lambda: image.sum(axis=(0, 1, 2)),
            "`ones @ x`": lambda: ones @ x,
        },
        "view of all 3x3 windows": {
            "`as_strided`": lambda: strided(padded, shape, steps),
            "`np.ndarray`": lambda: np.ndarray(shape, np.float32, padded, 0, steps),
        },
    }
    return [
        {"work": work, "ways": {way: microseconds(call, seconds) for way, call in ways.items()}}
        for work, ways in pairs.items()
    ]


def microseconds(call: Callable[[], Any], seconds: float) -> float:
    """Median over groups of calls, each group long enough for the clock."""
    number = 1
    while (took := seconds_of(call, number)) < 2e-4:
        number *= 2
    groups = [seconds_of(call, number) for _ in range(max(3, int(seconds / took)))]
    return 1e6 * statistics.median(groups) / number


def seconds_of(call: Callable[[], Any], number: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - start


def calls_table(measured: Rows) -> Table:
    cells = [["65,536 floats", "instead of", "µs", "here", "µs", "times faster"]]
    for row in measured:
        (one, slow), (other, fast) = row["ways"].items()
        cells.append([row["work"], one, f"{slow:.1f}", other, f"{fast:.1f}", f"{slow / fast:.1f}"])
    return cells


def wakeup(seconds: float) -> Rows:
    """From the call of `parallel` until the last worker starts on its part."""

    def delays(pause: float) -> list[float]:
        measured = []
        for _ in range(200):
            time.sleep(pause)
            start = time.perf_counter()
            measured.append(1e6 * (max(workers.parallel(lambda a, b: time.perf_counter(), workers.count)) - start))
        return measured

    return [
        {"workers": "that have slept for 5 ms", "microseconds": delays(5e-3)},
        {"workers": "that have just ended a part", "microseconds": delays(0)},
    ]


def wakeup_table(measured: Rows) -> Table:
    cells = [["workers", "start after, µs", "the slowest tenth after more than"]]
    for row in measured:
        cells.append([row["workers"], *(f"{v:.0f}" for v in np.percentile(row["microseconds"], [50, 90]))])
    return cells


# --- memory


STEP_CASES = ("resnet20", "resnet18")
GIVE_BACK = (
    "import ctypes, numpy, threadpoolctl; CDLL = ctypes.CDLL; del ctypes.CDLL; import minires; ctypes.CDLL = CDLL; "
)


def memory(seconds: float) -> Rows:
    """Steps in processes of their own, in turns; in every other one `workers` cannot reach the C library's mallopt."""
    measured = []
    for case in STEP_CASES:
        row: dict[str, Any] = {"case": case, "ways": {"given back": [], "kept": []}}
        for _ in range(2):
            for way, results in row["ways"].items():
                code = (
                    GIVE_BACK if way == "given back" else ""
                ) + f"from examples.measure import cpu_details; cpu_details.steps({case!r})"
                command = [sys.executable, "-c", code]
                text = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
                results.append(json.loads(text))
        measured.append(row)
    return measured


def steps(case: str) -> None:
    """Print the seconds and the page faults of each of some training steps, and the megabytes of it all."""
    import resource

    step = training_step(case)
    step()
    result: dict[str, Any] = {"seconds": [], "faults": []}
    for _ in range(8 if case == "resnet20" else 4):
        faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        step()
        result["seconds"].append(time.perf_counter() - start)
        result["faults"].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
    print(json.dumps({**result, "megabytes": benchmark.peak_bytes() / 1e6}))


def training_step(case: str) -> Callable[[], None]:
    """The training step that benchmark.py times."""
    depth, stem, size, batch_size = benchmark.CASES[case]
    labels = np.random.default_rng(0).integers(0, 10, batch_size)
    return benchmark.minires_step(depth, stem, normal(batch_size, size, size, 3), labels, "training")[0]


def memory_table(measured: Rows) -> Table:
    cells = [["training step", "freed memory", "ms", "page faults", "peak memory"]]
    for row in measured:
        for way, results in row["ways"].items():
            seconds, faults = (statistics.median(chain(*(r[key] for r in results))) for key in ("seconds", "faults"))
            megabytes = statistics.median(r["megabytes"] for r in results)
            name = benchmark.name_of(row["case"])
            cells.append([name, way, f"{1e3 * seconds:.0f}", f"{faults:,.0f}", f"{megabytes:.0f} MB"])
    return cells


def activations(seconds: float) -> Rows:
    """The memory that Python and NumPy hold after forward, minus that before. The same on every machine."""
    row: dict[str, Any] = {"case": "resnet101", "megabytes": {}}
    depth, stem, size, batch_size = benchmark.CASES["resnet101"]
    x, labels = mr.Tensor(normal(batch_size, size, size, 3)), np.arange(batch_size) % 10
    for way in ("layer by layer", "branch by branch"):
        model = mr.models.build(depth, 10, stem)
        # While somebody observes the layers, they are computed one after the other: see nn/branch.py.
        observed = nn.observe(lambda *_: None) if way == "layer by layer" else contextlib.nullcontext()
        with observed:
            F.cross_entropy(model(x), labels)  # makes the scratch buffers
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            loss = F.cross_entropy(model(x), labels)
            row["megabytes"][way] = (tracemalloc.get_traced_memory()[0] - before) / 1e6
            tracemalloc.stop()
        del loss
    return [row]


def activations_table(measured: Rows) -> Table:
    cells = [["kept for backward", "layer by layer", "branch by branch", "ratio"]]
    for row in measured:
        layers, branches = row["megabytes"].values()
        name = benchmark.name_of(row["case"])
        cells.append([name, f"{layers:.0f} MB", f"{branches:.0f} MB", f"{branches / layers:.2f}"])
    return cells


# --- where the time goes


GROUPS: dict[str, list[tuple[Any, str]]] = {
    "matrix products": [
        (matmul, "matmul matmul_transposed"),
        (convolution, "_add_product add_up"),
    ],
    "windows laid out as columns": [(convolution, "columns _col2im")],
    "Winograd, products": [(winograd, "multiply add_weight_product weight_gradient")],
    "Winograd, transforms": [
        (convolution, "_winograd_patches"),
        (winograd, "transform_patches transform_tiles store_turned_weight_gradient _small_matmul _store_turned"),
    ],
    "weights in panels and transformed": [(matmul, "panels"), (winograd, "transform_weight")],
    "batch norm, ReLU, shortcuts": [
        (batch_norm, "batch_norm_statistics batch_norm_apply batch_norm_backward"),
        (batch_norm.Moments, "merged"),
        (batch_norm.GradientSums, "merged"),
        (branch._Statistics, "finish"),
        (branch._Normalised, "load load_into"),
        (branch._MaskAndSums, "finish"),
        (branch._BatchNormGradient, "load load_into"),
        (branch._AddToGradient, "finish"),
        (branch, "_join _reduce_join"),
        (elementwise, "relu relu_backward"),
    ],
    "Adam": [(optimizers, "adam_update")],
    "pooling": [(pooling, "max_pool2d max_pool2d_backward avg_pool2d avg_pool2d_backward")],
}
REST = "waiting, Python, and the rest"


class Clock:
    """Seconds of all threads together, by group. A call into another group counts for the called group only."""

    def __init__(self) -> None:
        self.threads: list[Counter] = []
        self.here = threading.local()

    @contextlib.contextmanager
    def group(self, name: str | None) -> Iterator[None]:
        if not hasattr(self.here, "open"):
            self.here.open, self.here.seconds = [], Counter()
            self.threads.append(self.here.seconds)
        frame = [name, 0.0]  # and the seconds of the groups inside
        self.here.open.append(frame)
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.here.open.pop()
            self.here.seconds[name] += took - frame[1]
            if self.here.open:
                self.here.open[-1][1] += took

    def current(self) -> str | None:
        """The group that this thread is in."""
        frames = getattr(self.here, "open", [])
        return frames[-1][0] if frames else None

    def timed(self, function: Callable, name: str | None) -> Callable:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.group(name):
                return function(*args, **kwargs)

        return call

    def parallel(self, task: Callable, *args: Any, **kwargs: Any) -> list:
        """workers.parallel: the parts count for the caller's group, waiting for each other for none."""
        timed = self.timed(task, self.current())
        with self.group(None):
            return self.original(timed, *args, **kwargs)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Every function of GROUPS is timed wherever a CPU kernel refers to it."""
        self.original = workers.parallel
        instead = {self.original: self.parallel}
        restore = []
        for name, places in GROUPS.items():
            for place, functions in places:
                for function in functions.split():
                    original = getattr(place, function)
                    timed = self.timed(original, name)
                    if isinstance(place, ModuleType):
                        instead[original] = timed
                    else:
                        restore.append((place, function, vars(place)[function]))
                        static = isinstance(vars(place)[function], staticmethod)
                        setattr(place, function, staticmethod(timed) if static else timed)
        modules = [m for name, m in sys.modules.items() if name.startswith("minires.cpu")]
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, FunctionType) and value in instead:
                    restore.append((module, name, value))
                    setattr(module, name, instead[value])
        try:
            yield
        finally:
            for place, name, value in restore:
                setattr(place, name, value)

    def read(self) -> Counter:
        """The seconds of each group since the last reading."""
        total: Counter = Counter()
        for seconds in self.threads:
            total.update(seconds)
            seconds.clear()
        return total


def profile(seconds: float) -> Rows:
    """A step's time on all workers, by group, and what is left of workers x the step."""
    return [{"case": case, **profiled(training_step(case), n)} for case, n in (("resnet101", 4), ("resnet20", 12))]


def profiled(step: Callable[[], None], n: int) -> dict[str, Any]:
    """The seconds of `n` steps without the clock and of `n` with it, in turns, and of each group in these."""
    clock = Clock()
    result: dict[str, Any] = {"workers": workers.count, "seconds": [], "timed": []}
    groups: dict[str, list[float]] = defaultdict(list)
    step()  # makes the scratch buffers
    for _ in range(n):
        result["seconds"].append(seconds_of(step))
        with clock.installed():
            took = seconds_of(step)
        result["timed"].append(took)
        read = clock.read()
        for name in GROUPS:
            groups[name].append(read[name])
        groups[REST].append(workers.count * took - sum(read[name] for name in GROUPS))
    return {**result, "groups": groups}


def profile_table(measured: Rows) -> Table:
    cells = [["ms of all workers together", *(f"{benchmark.name_of(row['case'])}" for row in measured)]]
    for name in [*GROUPS, REST]:
        cells.append([name, *(f"{1e3 * statistics.median(row['groups'][name]):.0f}" for row in measured)])
    for name, key in (("workers times the step", "timed"), ("the same without these clocks", "seconds")):
        cells.append([name, *(f"{1e3 * row['workers'] * statistics.median(row[key]):.0f}" for row in measured)])
    return cells


# --- other choices


CHOICES: list[tuple[str, list[dict[str, int]]]] = [
    ("resnet20", [*({"COLUMN_BYTES": size << 20} for size in (1, 2, 8)), {"WINOGRAD_CHANNELS": 16}]),
    ("resnet101-224", [{"WINOGRAD_TILES": 8}]),
]


def choices(seconds: float) -> Rows:
    """Training steps with plan.py as it is and with one bound changed, in turns; a pair is two steps of one turn."""
    measured = []
    for case, bounds in CHOICES:
        step = training_step(case)
        took: list[list[float]] = [[] for _ in [{}, *bounds]]
        for turn in range(1 + (10 if case == "resnet20" else 4)):
            for i, bound in enumerate([{}, *bounds]):
                with changed(plan, **bound):
                    seconds_of_step = seconds_of(step)
                    if turn:  # the first makes the scratch buffers
                        took[i].append(seconds_of_step)
        measured += [
            {"case": case, "bound": bound, "seconds": took[i], "as it is": took[0]} for i, bound in enumerate(bounds, 1)
        ]
    return measured


def choices_table(measured: Rows) -> Table:
    cells = [["training step", "instead", "ms", "as it is", "ratio", "quartiles"]]
    for row in measured:
        bound = ", ".join(f"{name} = {value:,}" for name, value in row["bound"].items())
        low, middle, high = np.percentile(np.divide(row["seconds"], row["as it is"]), [25, 50, 75])
        ms = (f"{1e3 * statistics.median(row[key]):.0f}" for key in ("seconds", "as it is"))
        cells.append([benchmark.name_of(row["case"]), bound, *ms, f"{middle:.2f}", f"{low:.2f}-{high:.2f}"])
    return cells


SECTIONS: dict[str, tuple[Callable[[float], Rows], Callable[[Rows], Table]]] = {
    "products": (products, products_table),
    "rounding": (rounding, rounding_table),
    "losses": (losses, losses_table),
    "calls": (calls, calls_table),
    "wakeup": (wakeup, wakeup_table),
    "memory": (memory, memory_table),
    "activations": (activations, activations_table),
    "profile": (profile, profile_table),
    "choices": (choices, choices_table),
}

if __name__ == "__main__":
    main()
