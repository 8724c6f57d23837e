"""The ladder of docs/fast-cpu.md: how long a training step takes with each idea of kernels/cpu added.

    python examples/cpu_ladder.py                       # ResNet-18, batch 64
    python examples/cpu_ladder.py --depth 101 --batch-size 32 --json ladder.json

Every rung runs in a process of its own, in turns, `--rounds` times; the table shows the median step of all rounds.
A step is forward, loss, backward and Adam, on random 32x32 images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

import minires as mr
import minires.functional as F
from minires import models, nn, optim

RUNGS = [  # what is new, environment variables, whether a residual branch is computed at one go
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
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each round, after one that is not timed")
    parser.add_argument("--json", metavar="FILE", help="write every time there, in seconds")
    parser.add_argument("--rung", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rung is not None:
        print(json.dumps(step_times(args.depth, args.batch_size, args.steps, fused=RUNGS[args.rung][2])))
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

    medians = [statistics.median(t) for t in times]
    print(f"ResNet-{args.depth}, batch {args.batch_size}: milliseconds for a training step")
    for (name, _, _), median, before in zip(RUNGS, medians, [medians[0], *medians]):
        print(f"{name:<45}{1e3 * median:8.0f}   {before / median:5.2f} times faster than the line before")
    if args.json:
        record = {
            "depth": args.depth, "batch_size": args.batch_size, "machine": platform.platform(), "info": mr.info(),
            "rungs": [{"name": name, "seconds": t} for (name, _, _), t in zip(RUNGS, times)],
        }  # fmt: skip
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)


def step_times(depth: int, batch_size: int, steps: int, fused: bool) -> list[float]:
    """The seconds of each of `steps` training steps, after a first one."""
    model = models.build(depth)
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
