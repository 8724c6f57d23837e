"""The check of a machine with a GPU, in one command: correctness, and speed.

    python examples/measure/gpu_check.py --out DIR --plan find       # 200 s: faults
    python examples/measure/gpu_check.py --out DIR --plan measure    # 420 s: times, with PyTorch beside them
    python examples/measure/gpu_check.py --out DIR --plan find --device cpu --tiny    # a trial on the simulated GPU

    find      smoke         versions, registers of every kernel, matrix products, a graph, recorded steps
              kernels       each kernel against its definition, its time, and its share of the bandwidth
              tests         the tests of the CUDA path that are marked gpu
    measure   steps         training steps: as a CUDA graph, and eager
              convolutions  each convolution of the ResNets, with and without columns, against float64
              torch         the same steps in PyTorch: eager, channels last, and compiled
              ceilings      copy bandwidth, matrix products: the limits of this GPU
              training      ResNet-18 and ResNet-101 on CIFAR-10, if the files are in --data-dir

`--stages` runs any of these stages. Minutes with a GPU are rare: every stage is a process of its own, with its share of
the remaining time. A stage tries each of its cases once and writes the result at once, as a line of DIR/PLAN.jsonl. A
case that hangs, crashes or breaks the CUDA context costs only itself: the rest of the stage goes on in a new process.
At the end the check prints a table of at most 60 lines and writes the table to DIR/PLAN.txt. Details of the first
faults follow below the table.

This file starts the processes and prints the table. The stages are in gpu/: `python -m examples.measure.gpu.stage` runs
one of them, in the root of the checkout. This file imports only the standard library: an import that fails is then a
fault of a stage, shown in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, which has minires/, examples/ and tests/
PLANS = {
    "find": (("smoke", "kernels", "tests"), 200),
    "measure": (("steps", "convolutions", "torch", "ceilings", "training"), 420),
}
SHARES = {"smoke": 4, "kernels": 4, "tests": 7, "steps": 6, "convolutions": 3, "torch": 5, "ceilings": 1, "training": 9}
LINES = 60  # of the table
BROKEN, SKIPPED = 3, 4  # exit statuses of a stage: the CUDA context is broken; the stage does not apply here
GRACE = 10  # seconds that a stage has to end by itself, once its time is up


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and print the table; return 0 if no stage has failed and no result is wrong, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for PLAN.jsonl and PLAN.txt")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--plan", choices=PLANS, help="find faults, or measure times")
    what.add_argument("--stages", nargs="+", choices=SHARES, help="these only")
    parser.add_argument("--budget", type=float, help="seconds for everything (default: the plan's; for --stages: 200)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the simulated GPU")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script; the times mean nothing")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the CIFAR-10 files")
    args = parser.parse_args(arguments)
    args.out, args.data_dir = args.out.resolve(), args.data_dir.resolve()  # the stages run in another folder
    stages, seconds = PLANS[args.plan] if args.plan else (tuple(dict.fromkeys(args.stages)), 200)
    if args.budget is not None and not 0 < args.budget < float("inf"):
        parser.error(f"argument --budget: {args.budget} is not a number of seconds above 0")
    path = args.out / f"{args.plan or 'check'}.jsonl"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    except OSError as error:
        parser.error(f"argument --out: {error.filename}: {error.strerror}")
    shares = dict(SHARES)
    if not list(args.data_dir.glob("cifar-10*")):
        shares["training"] = 0.1  # the stage will be skipped
    end = time.monotonic() + (args.budget or seconds)
    for i, stage in enumerate(stages):
        share = shares[stage] / sum(shares[later] for later in stages[i:])
        run_stage(stage, path, args, share * (end - time.monotonic()))
    records = read(path)
    text = "\n".join(table(records)[:LINES])
    path.with_suffix(".txt").write_text(text + "\n")
    print("\n".join([text, *faults(records)]))
    failed = any(record["status"] == "failed" for record in records.values())
    return int(failed or any(row.get("wrong") for record in records.values() for row in record["rows"]))


def run_stage(stage: str, path: Path, args: argparse.Namespace, limit: float) -> None:
    """Run one stage, in as many processes as needed. The stage's last line in `path` says how it went, in any case."""
    start = time.monotonic()
    print(f"== {stage} (at most {limit:.0f} s)", flush=True)
    status, reason = _run_cases(stage, path, args, start + limit)
    seconds = time.monotonic() - start
    append(path, stage=stage, status=status, seconds=round(seconds, 1), reason=reason)
    print(f"-- {stage}: {status}, {seconds:.0f} s" + f" ({reason})" * bool(reason), flush=True)


def _run_cases(stage: str, path: Path, args: argparse.Namespace, end: float) -> tuple[str, str]:
    """(status, reason) of a stage that may run until `end`."""
    skip, traced = 0, False  # the cases that are done; whether the case in hand is run again, to see where it fails
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        while (left := end - time.monotonic()) > 2:
            note_progress(progress, skip, None)
            options = {"out": path, "progress": progress, "skip": skip, "count": 1 if traced else 10**6}
            options |= {"end": f"{end:.3f}", "device": args.device, "data-dir": args.data_dir}
            ended = _run_process(
                stage, options, args.tiny, left + GRACE, {"CUDA_LAUNCH_BLOCKING": "1"} if traced else {}
            )
            done, running = json.loads(progress.read_text())
            if ended.status == 0 and not traced:
                break
            if ended.status == SKIPPED:
                return "skipped", ended.last_line
            if running is not None:  # it did not live to write its row
                if time.monotonic() > end - 2 and ended.hung:  # it may have been right, and late
                    text = f"{running}: its time was up, after {done} cases; what comes after it was not tried"
                    append(path, stage=stage, case=running, text=text, untried=1)
                    return "done", f"its time was up in case {done + 1}, {running}; what comes after it was not tried"
                text, trace = f"{running}: {ended.how}", ended.trace
                append(path, stage=stage, case=running, text=text, wrong=is_ours(stage), traceback=trace)
                done += 1
            elif ended.status not in (0, BROKEN):
                append(path, stage=stage, traceback=ended.trace)
                return "failed", ended.last_line or ended.how
            # A broken context is noticed some launches too late; with every launch waited for, it is noticed in place.
            traced = ended.status == BROKEN and not traced
            skip = done - 1 if traced else done
        else:
            return "failed", "no time was left for all cases"
    late = sum(row.get("untried", 0) for row in read(path)[stage]["rows"])
    return "done", f"there was no time for {late} of its cases" if late else ""


def is_ours(stage: str) -> bool:
    """Whether a failure in a stage is a fault of minires; a failure of PyTorch is not."""
    return stage != "torch"


class Ended(NamedTuple):
    """How a process ended: its exit status, that in words, and what it wrote to stderr."""

    status: int
    how: str
    stderr: str

    @property
    def hung(self) -> bool:
        """Whether it was stopped because it took too long."""
        return "Timeout (" in self.stderr or self.how.startswith("killed after")  # the first is faulthandler's

    @property
    def trace(self) -> str:
        """The part of stderr that tells most: faulthandler begins with the last call, a traceback ends with it."""
        start = self.stderr.rfind("(most recent call first)")
        return self.stderr[-4000:] if start < 0 else self.stderr[max(start - 80, 0) :][:4000]

    @property
    def last_line(self) -> str:
        """What it said last."""
        return (self.stderr.strip().splitlines() or [""])[-1][:300]


def _run_process(stage: str, options: dict[str, Any], tiny: bool, limit: float, environment: dict[str, str]) -> Ended:
    """One process of a stage. After `limit` seconds the process is killed, with all processes that it has started."""
    command = [sys.executable, "-X", "faulthandler", "-m", "examples.measure.gpu.stage", stage, *["--tiny"] * tiny]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    # Not a pipe: what the process has started may live longer, and hold its end open.
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=file,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        except subprocess.TimeoutExpired:
            how = f"killed after {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        file.seek(0)
        stderr = file.read()
    ended = Ended(process.returncode, how, stderr)
    return ended._replace(how="it hangs; the traceback shows where") if "Timeout (" in stderr else ended


def note_progress(path: Path, done: int, running: str | None) -> None:
    """Write how many cases of a stage are done, and which one runs. The file is whole, whenever the process dies."""
    path.with_suffix(".new").write_text(json.dumps([done, running]))
    path.with_suffix(".new").replace(path)


def append(path: Path, **line: Any) -> None:
    """Append a line to a record."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The record by stage: "status", "seconds", "reason", "rows" and "machine" of each stage."""
    records: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # half a line, of a process that was killed
            row = json.loads(line)
            record = records.setdefault(row.pop("stage"), {"status": "failed", "rows": []})
            if "text" in row:
                record["rows"].append(row)
            else:
                record |= row
    return records


def table(records: dict[str, dict[str, Any]]) -> list[str]:
    """Lines for a reader: every stage with its status, then its rows, or only the most important rows."""
    machine = next((r["machine"] for r in records.values() if "machine" in r), {})
    lines = [", ".join(f"{name} {value}" for name, value in machine.items())]
    room = LINES - 1 - 2 * len(records)
    torch_rows = records.get("torch", {}).get("rows", [])
    other = {tuple(row["key"]): row for row in torch_rows if "key" in row and not row["compiled"]}
    for stage, record in records.items():
        rows, reason = record["rows"], f": {record['reason']}" if record.get("reason") else ""
        lines.append(f"-- {stage}: {record['status']}, {record.get('seconds', 0):.0f} s{reason}")
        wrong = [row for row in rows if row.get("wrong")]
        if stage == "torch" and "steps" in records:  # eager PyTorch stands beside our own steps
            rows = [row for row in rows if row.get("compiled", True)]
        share = {"steps": 22, "kernels": 14, "smoke": 14}.get(stage, 8)
        shown = (wrong + [row for row in rows if row not in wrong])[: min(share, room)]
        room -= len(shown)
        for row in shown:
            text = row["text"]
            if stage == "steps" and "milliseconds" in row and (torch := other.get(tuple(row["key"]))):
                text += (
                    f"; torch {torch['milliseconds']:.2f} ms, ratio {row['milliseconds'] / torch['milliseconds']:.2f}; "
                    f"memory {row['megabytes']:.0f} / {torch['megabytes']:.0f} MB"
                )
            lines.append(f"   {'WRONG ' * bool(row.get('wrong'))}{text[:300]}")
        if len(shown) < len(rows):
            lines.append(f"   ... {len(rows) - len(shown)} more rows in the record")
    return lines


def faults(records: dict[str, dict[str, Any]], most: int = 6, lines: int = 24) -> Sequence[str]:
    """Details of the first faults, two per stage: the ends of their tracebacks, or the results and expected values."""
    found, text = [], []
    for stage, record in records.items():
        rows = [row for row in record["rows"] if row.get("wrong")]
        if "traceback" in record:  # it did not begin
            rows.append(
                {"case": "the stage itself", "text": record.get("reason", ""), "traceback": record["traceback"]}
            )
        found += [(stage, row) for row in rows[:2]]
    for stage, row in found[:most]:
        outputs = [json.dumps(output) for output in row.get("outputs", []) if output["wrong"]]
        detail = (row.get("traceback") or "\n".join(outputs)).strip().splitlines()
        first_is_last = any("(most recent call first)" in line for line in detail)  # faulthandler's
        text += [f"\n>> {stage}: {row['case']}", row["text"], *(detail[:lines] if first_is_last else detail[-lines:])]
    return text


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the stage in hand is ended too
    sys.exit(main())
