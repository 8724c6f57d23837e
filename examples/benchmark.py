"""How fast is it? minires beside PyTorch on the same work, on this machine's CPU.

    python examples/benchmark.py                                # the four networks, training and inference
    python examples/benchmark.py resnet20 --rounds 5 --json results.json

Each measurement is a process of its own, and minires and PyTorch take turns, `--rounds` times, so that other work on
the machine disturbs both alike. A training step is forward, cross-entropy, backward and Adam; inference is
`minires.fold(model)` under no_grad against `model.eval()` under inference_mode. PyTorch uses channels_last, its faster
layout, and as many threads as minires has workers; without PyTorch only minires is timed. Memory is the peak of the
whole process. The ratio is that of the medians: below 1 minires is faster, or smaller.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each process, after one that is not timed")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.steps)))
        return

    libraries = ["minires"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    records = []
    print(f"{'network':<15}{'work':<11}{'minires':>9}{'PyTorch':>9}{'ratio':>7}   memory in MB, ratio   spread")
    for case in args.cases or CASES:
        for work in ("training", "inference"):
            runs: dict[str, list[dict]] = {library: [] for library in libraries}
            for _ in range(args.rounds):
                for library in libraries:
                    command = [sys.executable, __file__, "--steps", str(args.steps), "--one", library, case, work]
                    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
                    runs[library].append(json.loads(done.stdout))
            records.append({"case": case, "work": work, "runs": runs})
            print(line(case, work, runs), flush=True)
    if args.json:
        import minires as mr

        versions = {**mr.info()["versions"], **{lib: r[0]["version"] for lib, r in runs.items()}}
        machine = {"platform": platform.platform(), "workers": runs["minires"][0]["threads"]}
        with open(args.json, "w") as file:
            json.dump({"versions": versions, "machine": machine, "measurements": records}, file, indent=1)


def line(case: str, work: str, runs: dict[str, list[dict]]) -> str:
    """A row of the table: median milliseconds, peak memory, and how far apart the middle half of the times is."""
    times = {library: [t for run in r for t in run["seconds"]] for library, r in runs.items()}
    median = {library: statistics.median(t) for library, t in times.items()}
    memory = {library: statistics.median(run["peak_megabytes"] for run in r) for library, r in runs.items()}
    spread = {library: np.subtract(*np.percentile(t, [75, 25])) / median[library] for library, t in times.items()}
    text = f"{case:<15}{work:<11}{1e3 * median['minires']:9.0f}"
    if "torch" in runs:
        text += f"{1e3 * median['torch']:9.0f}{median['minires'] / median['torch']:7.2f}"
        text += f"   {memory['minires']:6.0f} {memory['torch']:6.0f} {memory['minires'] / memory['torch']:5.2f}"
    else:
        text += f"{'-':>9}{'-':>7}   {memory['minires']:6.0f}      -     -"
    return text + "   " + ", ".join(f"{100 * s:.0f} %" for s in spread.values())


def measure(library: str, case: str, work: str, steps: int) -> dict:
    """Times of one process, in seconds, and the most memory it used."""
    depth, stem, size, batch_size = CASES[case]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch_size)
    step, version, threads = (minires_step if library == "minires" else torch_step)(depth, stem, images, labels, work)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return {"seconds": times[1:], "first": times[0], "peak_megabytes": peak, "version": version, "threads": threads}


def minires_step(depth, stem, images, labels, work) -> tuple[Callable[[], None], str, int]:
    """The function to time, the version, the number of workers."""
    import minires as mr
    import minires.functional as F
    from minires.kernels.cpu import workers

    x = mr.Tensor(images)
    model = mr.models.build(depth, stem=stem)
    if work == "inference":
        model = mr.fold(model)

        def step() -> None:
            with mr.no_grad():
                model(x)

        return step, mr.__version__, workers.count
    optimizer = mr.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step, mr.__version__, workers.count


def torch_step(depth, stem, images, labels, work) -> tuple[Callable[[], None], str, int]:
    """The same for PyTorch."""
    import torch
    import torch_networks

    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = torch_networks.build(depth, stem).to(memory_format=torch.channels_last)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last in memory
    y = torch.from_numpy(labels)
    if work == "inference":
        model.eval()

        def step() -> None:
            with torch.inference_mode():
                model(x)

        return step, torch.__version__, torch.get_num_threads()
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step, torch.__version__, torch.get_num_threads()


if __name__ == "__main__":
    main()
