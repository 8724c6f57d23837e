"""`python -m examples.measure.gpu.stage STAGE --out FILE ...`: one stage of gpu_check.py, in this process."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from examples.measure.gpu import find, speed
from examples.measure.gpu.cases import Cases, Skipped
from examples.measure.gpu_check import SKIPPED
from minires.device import cuda
from tests import simulator

STAGES = {**find.STAGES, **speed.STAGES}


def main() -> None:
    """Run the stage's cases, and write their results to the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="the record")
    parser.add_argument("--progress", type=Path, required=True, help="file for the progress")
    parser.add_argument("--skip", type=int, default=0, help="cases that are done already")
    parser.add_argument("--count", type=int, default=10**6, help="the most cases to run")
    parser.add_argument("--end", type=float, required=True, help="the deadline, by time.monotonic()")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    log = os.fdopen(os.dup(sys.stderr.fileno()), "w")  # a copy: pytest takes stderr away
    faulthandler.enable(log)
    reason = cuda.why_not() if args.device == "cuda" else simulator.why_not()
    if reason:
        raise SystemExit(reason)
    cases = Cases(
        args.stage, args.out, args.progress, args.end, skip=args.skip, count=args.count, device=args.device,
        tiny=args.tiny, data_dir=args.data_dir, log=log,
    )  # fmt: skip
    with simulator.gpu() if args.device == "cpu" else nullcontext():
        if not args.skip:
            cases.note_machine()
        try:
            STAGES[args.stage](cases)
        except Skipped as reason:
            print(reason, file=sys.stderr)
            raise SystemExit(SKIPPED) from None
        cases.note_state()


if __name__ == "__main__":
    main()
