"""One command for a machine with a GPU: is everything right, and how fast is it?

    python -m minires.kernels.cuda.check --out DIR --budget 540     # seconds; a GPU is needed
    python -m minires.kernels.cuda.check --out DIR --device cpu --tiny     # the same on the simulated GPU, in a minute

Minutes with a GPU are rare, so: every stage is a process of its own with a time limit, none can stop the others, and
what it has found so far is in DIR/STAGE.json whenever it ends. The table printed last has at most 60 lines.

    ceilings      copy bandwidth, matrix products: what this GPU can do
    tests         the tests marked gpu
    kernels       each kernel against its definition, its time, and its share of the bandwidth
    convolutions  each convolution of the ResNets, with and without columns
    steps         training steps: eager, and as a CUDA graph
    torch         the same steps in PyTorch, if it is installed
    training      ResNet-18 and ResNet-101 on CIFAR-10, if the files are in --data-dir, with what is left of the time

This file starts the processes and prints; the stages are in minires/measure, which may import what kernels may not.

Reading order: after graph.py. Next: measure/stages.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STAGES = {"ceilings": 0.06, "tests": 0.2, "kernels": 0.12, "convolutions": 0.12, "steps": 0.25, "torch": 0.25}
# "training" comes last and gets all that the others leave; each of them may take its share, and what was left before it
LINES = 60


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and print the table; 0 if every stage that ran has succeeded, and no result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for one JSON file per stage and table.txt")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything (default: 540)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the simulated GPU")
    parser.add_argument("--tiny", action="store_true", help="sizes for a trial of this script, not for figures")
    parser.add_argument("--stages", nargs="+", choices=[*STAGES, "training"], default=[*STAGES, "training"])
    parser.add_argument("--data-dir", default="data", help="where the CIFAR-10 files are")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.budget
    for stage in args.stages:
        remaining = end - time.monotonic()
        limit = remaining if stage == "training" else min(remaining, STAGES[stage] * args.budget)
        run_stage(stage, args, limit)
    records = [read(args.out / f"{stage}.json") for stage in args.stages]
    text = "\n".join(table(records)[:LINES])
    (args.out / "table.txt").write_text(text + "\n")
    print(text)
    failed = any(record["status"] not in ("done", "skipped") for record in records)
    wrong = any(row.get("wrong") for record in records for row in record["rows"])
    return int(failed or wrong)


def run_stage(stage: str, args: argparse.Namespace, limit: float) -> None:
    """Run one stage in a process of its own; whatever happens, its JSON file says so."""
    path = args.out / f"{stage}.json"
    path.unlink(missing_ok=True)
    if limit < 1:
        write(path, {"stage": stage, "status": "skipped", "reason": "no time was left", "rows": []})
        return
    print(f"== {stage} (at most {limit:.0f} s)", flush=True)
    command = [sys.executable, "-m", "minires.measure", stage, "--out", str(path), "--device", args.device]
    command += ["--seconds", f"{limit:.0f}", "--data-dir", args.data_dir, *["--tiny"] * args.tiny]
    start, stderr = time.monotonic(), ""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=limit, check=False)
        stderr = done.stderr
        failure = None if done.returncode == 0 else (stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        failure = f"stopped after {limit:.0f} s"
    record = read(path)
    if failure:
        record |= {"status": "failed", "reason": failure[:300]}
        if stderr:
            record["stderr"] = stderr[-4000:]
    write(path, record | {"stage": stage, "seconds": round(time.monotonic() - start, 1)})


def read(path: Path) -> dict[str, Any]:
    """The record of a stage; an empty one if it left none."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {"stage": path.stem, "status": "failed", "reason": "left no result", "rows": []}


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record."""
    path.write_text(json.dumps(record, indent=1) + "\n")


def table(records: list[dict[str, Any]]) -> list[str]:
    """Lines for a reader: every stage with its status; then its rows, the most important ones if there are too many."""
    machine = next((r["machine"] for r in records if "machine" in r), {})
    lines = [", ".join(f"{name} {value}" for name, value in machine.items())]
    room = LINES - 1 - 2 * len(records)
    by_name = {record["stage"]: record for record in records}
    other = {tuple(row["case"]): row for row in by_name.get("torch", {}).get("rows", []) if "milliseconds" in row}
    for record in records:
        reason = f": {record['reason']}" if record.get("reason") else ""
        lines.append(f"-- {record['stage']}: {record['status']}, {record.get('seconds', 0):.0f} s{reason}")
        if record["stage"] == "torch" and "steps" in by_name:
            continue  # beside our own steps
        share = {"steps": 22, "kernels": 14}.get(record["stage"], 7)
        rows = record.get("rows", [])
        wrong = [row for row in rows if row.get("wrong")]
        shown = (wrong + [row for row in rows if row not in wrong])[: min(share, room)]
        room -= len(shown)
        for row in shown:
            text = row["text"]
            if record["stage"] == "steps" and "milliseconds" in row and (torch := other.get(tuple(row["case"]))):
                text += (
                    f"; torch {torch['milliseconds']:.2f} ms, ratio {row['milliseconds'] / torch['milliseconds']:.2f}; "
                    f"memory {row['megabytes']:.0f} / {torch['megabytes']:.0f} MB"
                )
            lines.append(f"   {'WRONG ' * bool(row.get('wrong'))}{text}")
        if len(shown) < len(rows):
            lines.append(f"   ... {len(rows) - len(shown)} more in {record['stage']}.json")
    return lines


if __name__ == "__main__":
    sys.exit(main())
