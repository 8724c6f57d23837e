"""`python -m minires.measure STAGE --out FILE`: one stage of minires.kernels.cuda.check, in this process."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from minires.device import cuda
from minires.kernels.cuda import simulator
from minires.measure.stages import STAGES, Record


def main() -> None:
    """Run the stage; its file says how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    record = Record(args.stage, args.out, args.device, args.tiny, args.seconds, args.data_dir)
    reason = cuda.why_not() if args.device == "cuda" else simulator.why_not()
    if reason:
        record.finish("failed", reason)
        raise SystemExit(reason)
    with simulator.gpu() if args.device == "cpu" else nullcontext():
        record.note_machine()
        STAGES[args.stage](record)
    record.finish()


if __name__ == "__main__":
    main()
