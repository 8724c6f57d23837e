"""The speed of minires beside PyTorch, on the same work, on this machine's CPU.

    python examples/measure/benchmark.py                        # the four networks, training and inference
    python examples/measure/benchmark.py resnet20 --rounds 5 --json results.json
    python examples/measure/benchmark.py --scaling              # a step's time against depth and batch size; the data
    python examples/measure/benchmark.py --show results.json    # print the tables of a results file, without measuring

A training step is forward, cross-entropy, backward and Adam. Inference is `minires.fold(model)` under no_grad against
`model.eval()` under inference_mode. PyTorch uses channels_last, its faster layout, and as many threads as minires has
workers. Without PyTorch only minires is timed. The two libraries run in processes of their own and take turns step by
step: other work on the machine disturbs both alike. Each of the `--rounds` starts both processes anew.

    ratio    the median of the ratios of two steps in turn: below 1 minires is faster
    memory   the peak of the whole process
    start    seconds from starting Python to the end of the first step: import, model, step
    floor    milliseconds of the matrix products alone, as minires calls them, on cached data: the time of a training
             step if nothing else took any time
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

CASES = {  # name: depth, stem, image size, batch size
    "resnet101": (101, "cifar", 32, 32),
    "resnet18": (18, "cifar", 32, 64),
    "resnet20": (20, None, 32, 128),
    "resnet101-224": (101, "imagenet", 224, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30, help="timed seconds in each round of each case and work")
    parser.add_argument("--scaling", action="store_true", help="time steps of other depths and batch sizes instead")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--show", metavar="FILE", help="print the tables of a results file, measure nothing")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        library, depth, stem, size, batch_size, work = args.one
        serve(library, (int(depth), stem if stem != "None" else None, int(size), int(batch_size)), work)
        return
    if args.show:
        with open(args.show) as file:
            record = json.load(file)
        tables = [table(record)] if "measurements" in record else [depth_table(record), batch_table(record)]
        print("\n\n".join(tables))
        return
    record = scaling() if args.scaling else compare(args.cases or list(CASES), args.rounds, args.seconds)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({**about(), **record}, file, indent=1)


def about() -> dict[str, Any]:
    """The head of every file of measurements: the command, the date and the machine."""
    import minires as mr

    command = ["python", f"examples/measure/{os.path.basename(sys.argv[0])}", *sys.argv[1:]]
    return {"command": shlex.join(command), "date": datetime.date.today().isoformat(), "info": mr.info()}


def name_of(case: str) -> str:
    """The name of a case, such as "ResNet-20, 32x32, batch 128"."""
    depth, _, size, batch_size = CASES[case]
    return f"ResNet-{depth}, {size}x{size}, batch {batch_size}"


def compare(cases: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Print the table, each row once it is measured, and return the measurements."""
    libraries = ["minires"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    measurements, versions = [], {}
    print(markdown([COLUMNS]))
    for case in cases:
        for work in ("training", "inference"):
            results: dict[str, dict[str, list]] = {
                library: {"seconds": [], "start": [], "megabytes": []} for library in libraries
            }
            for _ in range(rounds):
                processes = {library: Process(library, CASES[case], work) for library in libraries}
                pairs = math.ceil(seconds / sum(p.step() for p in processes.values()))
                for i in range(min(max(pairs, 5), 200)):
                    for library in libraries if i % 2 == 0 else libraries[::-1]:
                        results[library]["seconds"].append(processes[library].step())
                for library, process in processes.items():
                    results[library]["start"].append(process.start)
                    results[library]["megabytes"].append(process.end())
                    versions[library] = process.version
            record = {"case": case, "work": work, "results": results, "floor": floor(CASES[case], work)}
            measurements.append(record)
            print(markdown_row(row(record)), flush=True)
    return {"versions": versions, "measurements": measurements}


COLUMNS = ["network", "work", "minires", "PyTorch", "ratio", "quartiles", "peak memory", "ratio", "start", "floor"]


def row(record: dict) -> list[str]:
    """The cells of a measurement, one for each of COLUMNS; empty where PyTorch is missing."""
    ours, torch = record["results"]["minires"], record["results"].get("torch")
    median = statistics.median
    memory, start = f"{median(ours['megabytes']):.0f}", f"{median(ours['start']):.1f}"
    theirs = ratio = quartiles = memory_ratio = ""
    if torch:
        low, middle, high = np.percentile(np.divide(ours["seconds"], torch["seconds"]), [25, 50, 75])
        theirs, ratio, quartiles = (
            f"{1e3 * median(torch['seconds']):.0f} ms",
            f"**{middle:.2f}**",
            f"{low:.2f}-{high:.2f}",
        )
        memory_ratio = f"{median(ours['megabytes']) / median(torch['megabytes']):.2f}"
        memory += f" / {median(torch['megabytes']):.0f}"
        start += f" / {median(torch['start']):.1f}"
    return [
        name_of(record["case"]), record["work"], f"{1e3 * median(ours['seconds']):.0f} ms", theirs, ratio, quartiles,
        f"{memory} MB", memory_ratio, f"{start} s", f"{1e3 * record['floor']:.0f} ms",
    ]  # fmt: skip


def table(record: dict, columns: int = len(COLUMNS)) -> str:
    """The table of the record that `compare` returned, its first `columns`."""
    return markdown([cells[:columns] for cells in [COLUMNS, *map(row, record["measurements"])]])


def markdown(rows: list[list[str]]) -> str:
    """The cells as a table for a page, the header first."""
    return "\n".join([markdown_row(rows[0]), "|---" * len(rows[0]) + "|", *map(markdown_row, rows[1:])])


def markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Process:
    """A library in a process of its own, which makes a step on request."""

    def __init__(self, library: str, case: tuple, work: str):
        from minires.cpu import workers

        begin = time.perf_counter()
        command = [sys.executable, __file__, "--one", library, *map(str, case), work]
        environment = {**os.environ, "MINIRES_THREADS": str(workers.count)}
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.version = self._read()["version"]
        self.start = time.perf_counter() - begin

    def step(self) -> float:
        """The seconds of one step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def end(self) -> float:
        """End the process; its peak memory, in megabytes."""
        self.process.stdin.close()
        megabytes = self._read()["megabytes"]
        self.process.wait()
        return megabytes

    def _read(self) -> dict:
        text = self.process.stdout.readline()
        if not text:
            raise SystemExit(f"benchmark: {self.process.args} ended with status {self.process.wait()}")
        return json.loads(text)


def serve(library: str, case: tuple, work: str) -> None:
    """The other end of a Process: a first step, then one step for every input line."""
    depth, stem, size, batch_size = case
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch_size)
    step, version = (minires_step if library == "minires" else torch_step)(depth, stem, images, labels, work)
    step()
    print(json.dumps({"version": version}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    print(json.dumps({"megabytes": peak_bytes() / 1e6}), flush=True)


def minires_step(depth, stem, images, labels, work) -> tuple[Callable[[], None], str]:
    """The function to time, and the version of minires."""
    import minires as mr
    import minires.functional as F

    x = mr.Tensor(images)
    model = mr.models.build(depth, 10, stem)
    if work == "inference":
        model = mr.fold(model)

        def step() -> None:
            with mr.no_grad():
                model(x)

        return step, mr.__version__
    optimizer = mr.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step, mr.__version__


def torch_step(depth, stem, images, labels, work) -> tuple[Callable[[], None], str]:
    """The same for PyTorch."""
    import torch

    from examples.measure import torch_networks

    torch.set_num_threads(int(os.environ["MINIRES_THREADS"]))
    model = torch_networks.build(depth, stem).to(memory_format=torch.channels_last)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last in memory
    y = torch.from_numpy(labels)
    if work == "inference":
        model.eval()

        def step() -> None:
            with torch.inference_mode():
                model(x)

        return step, torch.__version__
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step, torch.__version__


def floor(case: tuple, work: str) -> float:
    """Seconds of the matrix products of one step, all workers at once, each product repeated on the same arrays."""
    import minires as mr
    from minires import nn
    from minires.cpu import matmul, plan, workers

    depth, stem, size, batch_size = case
    layers: Counter = Counter()  # how often there is a (shape of the input, positions, shape of the weight, geometry)

    def note(module: nn.Module, inputs: tuple, output: mr.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            shape, positions = (batch_size, *inputs[0].shape[1:]), output.shape[1] * output.shape[2]
            layers[shape, positions, module.weight.shape, module.geometry] += 1

    with mr.no_grad(), nn.observe(note):
        mr.models.build(depth, 10, stem).eval()(mr.Tensor(np.zeros((1, size, size, 3), np.float32)))

    def forward(groups: int, rows: int, k: int, outputs: int) -> float:
        weight = matmul.panels(np.ones((k, outputs), np.float32), matmul.panel_width(k, outputs))
        return timed(lambda a, out: matmul.matmul(a, weight, out), (rows, k), (rows, outputs), groups)

    def weight_gradient(groups: int, rows: int, k: int, outputs: int) -> float:
        b = np.ones((rows, outputs), np.float32)
        return timed(lambda a, out: matmul.matmul_transposed(a, b, out), (rows, k), (k, outputs), groups)

    def timed(product: Callable, a_shape: tuple, out_shape: tuple, times: int) -> float:
        def task(begin: int, end: int) -> float:
            a, out = np.ones(a_shape, np.float32), np.empty(out_shape, np.float32)
            product(a, out)
            start = time.perf_counter()
            for _ in range(3):
                product(a, out)
            return (time.perf_counter() - start) / 3

        return times * max(workers.parallel(task, workers.count))

    total, images = 0.0, max(batch_size // workers.count, 1)  # of a worker
    for (shape, positions, (kh, kw, c, o), geometry), count in layers.items():
        k, training, first = kh * kw * c, work == "training", c == 3
        if plan.use_winograd(shape, (kh, kw, c, o), geometry):
            ranges = list(plan.winograd_chunks(0, images, shape, (kh, kw, c, o)))
            rows, groups = plan.tiles(shape) * images // len(ranges), 36 * len(ranges)
            products = [forward(groups, rows, c, o)]
            if training:
                products += [forward(groups, rows, o, c), weight_gradient(groups, rows, c, o)]
        else:
            ranges = list(plan.chunks(0, images, positions, max(k, o), (kh, kw), backward=training))
            rows, groups = positions * images // len(ranges), len(ranges)
            products = [forward(groups, rows, k, o)]
            if training:
                products += [weight_gradient(groups, rows, k, o)]
                products += [] if first else [forward(groups, rows, o, k)]
        total += count * sum(products)
    return total


def scaling() -> dict[str, Any]:
    """Print and return the times of training steps for many depths and batch sizes, and of making a batch of images."""
    import minires as mr

    def milliseconds(depth: int, batch_size: int) -> float:
        stem = None if depth in mr.models.resnet_cifar.DEPTHS else "cifar"
        process = Process("minires", (depth, stem, 32, batch_size), "training")
        first = process.step()
        times = [first, *(process.step() for _ in range(min(max(math.ceil(5 / first), 2), 20)))]
        process.end()
        return 1e3 * statistics.median(times)

    records: dict[str, Any] = {"depth": [], "batch": []}
    for depths, batch_size in (((20, 32, 44, 56, 110), 128), ((18, 34, 50, 101, 152), 16)):
        for depth in depths:
            flops = (
                6 * mr.summary(mr.models.build(depth, 10, "cifar"), (32, 32, 3)).macs * batch_size
            )  # forward and twice backward
            took = milliseconds(depth, batch_size)
            records["depth"].append({"depth": depth, "batch_size": batch_size, "milliseconds": took, "flops": flops})
    print(depth_table(records), end="\n\n", flush=True)
    for depth in (20, 18):
        for batch_size in (8, 16, 32, 64, 128, 256):
            took = milliseconds(depth, batch_size)
            records["batch"].append({"depth": depth, "batch_size": batch_size, "milliseconds": took})
    print(batch_table(records), flush=True)

    from minires import data

    images = np.random.default_rng(0).integers(0, 256, (20000, 32, 32, 3), dtype=np.uint8)
    loader = data.Loader(
        images, np.zeros(len(images), np.int64), 128, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), train=True
    )
    start = time.perf_counter()
    batches = sum(1 for _ in loader.epoch(0))
    records["batch_milliseconds"] = 1e3 * (time.perf_counter() - start) / batches
    print(f"\na batch of 128 augmented images takes {records['batch_milliseconds']:.1f} ms to make")
    return records


def depth_table(record: dict) -> str:
    """A step's time and work against depth: the networks of one batch size beside those of another."""
    groups: dict[int, list[list[str]]] = {}
    for entry in record["depth"]:
        depth, took, flops = entry["depth"], entry["milliseconds"], entry["flops"]
        cells = [f"ResNet-{depth}", f"{took:.0f}", f"{flops / 1e9:.0f}", f"{flops / took / 1e6:.0f}"]
        groups.setdefault(entry["batch_size"], []).append(cells)
    header = [[f"network, batch {size}", "ms", "GFLOP", "GFLOP/s"] for size in groups]
    return markdown([list(chain(*cells)) for cells in [header, *zip(*groups.values())]])


def batch_table(record: dict) -> str:
    """A step's time per image against the batch size."""
    networks: dict[int, dict[int, float]] = {}
    for entry in record["batch"]:
        networks.setdefault(entry["depth"], {})[entry["batch_size"]] = entry["milliseconds"] / entry["batch_size"]
    sizes = [str(size) for size in next(iter(networks.values()))]
    rows = [[f"ResNet-{depth}, ms an image", *(f"{took:#.3g}" for took in values.values())]
            for depth, values in networks.items()]  # fmt: skip
    return markdown([["batch", *sizes], *rows])


def peak_bytes() -> int:
    """The peak memory of this process, in bytes."""
    try:
        with open("/proc/self/status") as file:  # Linux; ru_maxrss is inherited from the parent there
            return 1024 * next(int(text.split()[1]) for text in file if text.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
