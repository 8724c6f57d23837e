"""The cases of a stage of the check. A case is tried once and always gives a row.

    a result                the row that the case gives: a text for the table, and values
    an exception            the row holds the traceback; the next case goes on
    a broken CUDA context   every later call would fail alike: after the row the process ends, with status BROKEN
    a hang, a crash         the process ends, its Python stack goes to stderr; gpu_check.py writes the row

The progress file names the current case: [cases done, the name of the case that runs, or null].
"""

from __future__ import annotations

import faulthandler
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import minires as mr
from examples.measure.gpu_check import BROKEN, append, is_ours, note_progress
from minires.cuda.check import breaks_the_context


class Skipped(Exception):
    """The stage does not apply here; the text says why."""


class Cases:
    """The cases of one stage in this process: those numbered `skip` to `skip + count - 1`.

    stage, path        of the record, in JSON lines
    end                when the stage's time is up, by time.monotonic()
    device, data_dir   as the check was given them
    tiny               sizes for a trial
    """

    def __init__(
        self, stage: str, path: Path, progress: Path, end: float, *, skip: int = 0, count: int = 10**6,
        device: str = "cuda", tiny: bool = False, data_dir: Path = Path("data"), log: TextIO | None = None,
    ):  # fmt: skip
        self.stage, self.path, self.progress = stage, path, progress
        self.first, self.beyond, self.number = skip, skip + count, 0
        self.device, self.tiny, self.data_dir = device, tiny, data_dir
        self.end = end
        self.log = log or sys.stderr

    @property
    def time_left(self) -> float:
        """Seconds until the stage's time is up."""
        return self.end - time.monotonic()

    def row(self, case: str, text: str, **values: Any) -> None:
        """One more row: `text` for the table, everything for the record."""
        append(self.path, stage=self.stage, case=case, text=text, **values)

    def note_machine(self) -> None:
        """Note what the numbers depend on: the GPU, the versions, the date."""
        import cupy

        info = mr.info()
        gpu, driver = info["gpu"], cupy.cuda.runtime.driverGetVersion()
        machine = {
            "GPU": f"{gpu['name']} ({gpu['capability']}, {gpu['memory']})",
            "driver": f"CUDA {driver // 1000}.{driver % 1000 // 10}",
            **{name: info["versions"][name] for name in ("cupy", "numpy", "minires")},
            "revision": _said("git", "rev-parse", "--short", "HEAD") or "unknown",
            "Python": platform.python_version(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        }
        append(self.path, stage=self.stage, machine=machine, info=info)
        self.note_state()

    def note_state(self) -> None:
        """Note the GPU's clock rates and their throttle reasons; nothing without nvidia-smi."""
        if self.device == "cuda":
            query = "clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,clocks_event_reasons.active"
            state = _said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
            append(self.path, stage=self.stage, state=f"{datetime.now(timezone.utc):%H:%M:%S} {state}")

    def run(self, name: str, function: Callable[[], dict[str, Any]], *, needs: float = 2, limit: float = 8) -> None:
        """Try `function`, which gives the row's values: at least "text". With less than `needs` seconds left the case
        is not begun. A case longer than `limit`, and longer than a quarter of the remaining time, counts as hung."""
        import cupy

        with self.case(name, limit) as wanted:
            if not wanted:
                return
            if self.time_left < needs:
                self.row(name, f"{name}: there was no time for it", untried=1)
                return
            try:
                values = function()
                cupy.cuda.runtime.deviceSynchronize()  # an error of the GPU belongs to the case that made it
                self.row(name, **values)
            except Skipped:
                raise
            except Exception as error:
                trace = traceback.format_exc()
                try:  # what failed may only have been the first to notice an error of the GPU
                    cupy.cuda.runtime.deviceSynchronize()
                except Exception as cause:
                    trace += f"\nand the GPU says: {type(cause).__name__}: {cause}\n"
                self.failed(name, f"{type(error).__name__}: {error}", trace)

    @contextmanager
    def case(self, name: str, limit: float = 8) -> Iterator[bool]:
        """Around a case; whether this process is to run it. `limit`: see `run`."""
        wanted = self.first <= self.number < self.beyond
        if wanted:
            note_progress(self.progress, self.number, name)
            limit = max(self.time_left / 4, min(self.time_left, limit), 1)
            faulthandler.dump_traceback_later(limit, exit=True, file=self.log)
        self.number += 1
        try:
            yield wanted
        finally:
            if wanted:
                faulthandler.cancel_dump_traceback_later()
                note_progress(self.progress, self.number, None)

    def failed(self, name: str, what: str, trace: str) -> None:
        """The row of a case that has failed; ends the process if nothing can work after it."""
        text = what if what.startswith(name) else f"{name}: {what}"
        self.row(name, " ".join(text.split())[:300], wrong=is_ours(self.stage), traceback=trace[-4000:])
        if breaks_the_context(trace):
            note_progress(self.progress, self.number, None)
            self.log.flush()
            os._exit(BROKEN)  # at once: cleaning up would only fail, or wait for the GPU


def _said(*command: str) -> str:
    """What a command prints, in one line; nothing if it cannot be run."""
    try:
        return " ".join(subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split())
    except (OSError, subprocess.SubprocessError):
        return ""
