"""The ladder of docs/fast-cpu.md: the time of a training step as each idea of minires/cpu is added.

    python examples/measure/cpu_ladder.py                       # ResNet-18, batch 64
    python examples/measure/cpu_ladder.py --depth 101 --batch-size 32 --json ladder.json
    python examples/measure/cpu_ladder.py --show ladder.json    # print the table, measure nothing

Every rung runs in a process of its own, in turns, `--rounds` times; the table shows the median step of all rounds.
A step is forward, loss, backward and Adam, on random 32x32 images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

import minires as mr
import minires.functional as F
from examples.measure import benchmark
from minires import models, nn, optim

RUNGS = [  # the new idea, environment variables, whether residual branches are fused
    ("the reference, with BLAS's own threads", {"MINIRES_KERNELS": "reference"}, False),
    ("one worker, chunks that stay in the cache", {"MINIRES_THREADS": "1", "MINIRES_CONV": "direct"}, False),
    ("a worker for every core", {"MINIRES_CONV": "direct"}, False),
    ("Winograd for 3x3", {}, False),
    ("a residual branch as one operation", {}, True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, choices=models.DEPTHS, default=18)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each round, after an untimed one")
    parser.add_argument("--json", metavar="FILE", help="write every time to FILE, in seconds")
    parser.add_argument("--show", metavar="FILE", help="print the table of a file of --json, measure nothing")
    parser.add_argument("--rung", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rung is not None:
        print(json.dumps(step_times(args.depth, args.batch_size, args.steps, fused=RUNGS[args.rung][2])))
        return
    if args.show:
        with open(args.show) as file:
            print(table(json.load(file)))
        return

    times: list[list[float]] = [[] for _ in RUNGS]
    for _ in range(args.rounds):
        for i, (_, environment, _) in enumerate(RUNGS):
            command = [sys.executable, __file__, "--rung", str(i), "--steps", str(args.steps)]
            command += ["--depth", str(args.depth), "--batch-size", str(args.batch_size)]
            output = subprocess.run(
                command, env={**os.environ, **environment}, check=True, text=True, stdout=subprocess.PIPE
            ).stdout
            times[i] += json.loads(output)

    record = {
        "depth": args.depth, "batch_size": args.batch_size,
        "rungs": [{"name": name, "seconds": t} for (name, _, _), t in zip(RUNGS, times)],
    }  # fmt: skip
    print(table(record))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({**benchmark.about(), **record}, file, indent=1)


def table(record: dict) -> str:
    """The rungs, for a page."""
    rows = [[f"ResNet-{record['depth']}, batch {record['batch_size']}", "step", "fastest and slowest",
             "faster than the rung before"]]  # fmt: skip
    before = None
    for rung in record["rungs"]:
        took = statistics.median(rung["seconds"])
        spread = f"{1e3 * min(rung['seconds']):.0f}-{1e3 * max(rung['seconds']):.0f} ms"
        rows.append([rung["name"], f"{1e3 * took:.0f} ms", spread, f"{before / took:.2f} times" if before else ""])
        before = took
    return benchmark.markdown(rows)


def step_times(depth: int, batch_size: int, steps: int, fused: bool) -> list[float]:
    """The seconds of each of `steps` training steps, after a first one."""
    model = models.build(depth, 10, "cifar")
    optimizer = optim.Adam(model.parameters())
    rng = np.random.default_rng(0)
    x = mr.Tensor(rng.standard_normal((batch_size, 32, 32, 3)).astype(np.float32))
    labels = rng.integers(0, 10, batch_size)
    times = []
    # While somebody observes the layers, they are computed one after the other: see nn/branch.py.
    with contextlib.nullcontext() if fused else nn.observe(lambda module, inputs, output: None):
        for _ in range(steps + 1):
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
    return times[1:]


if __name__ == "__main__":
    main()
