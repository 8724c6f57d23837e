"""When to stop before the last epoch: Ctrl-C, SIGTERM, a time limit, a number of steps.

A signal only sets a flag. The loop reads the flag after each step: a signal never interrupts a step or a checkpoint.
A second Ctrl-C stops at once, wherever the program is.

Reading order: after checkpoint.py. Next: progress.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any


class Stop:
    """Limits of one session of training; as a context manager it also listens to Ctrl-C and SIGTERM.

        with Stop(max_minutes=10) as stop:
            fit(..., stop=stop)

    The clock starts on entry. Only the main thread can catch signals; other threads leave signals alone.
    """

    def __init__(self, max_minutes: float | None = None, max_steps: int | None = None):
        self.max_minutes, self.max_steps = max_minutes, max_steps
        self.steps = 0
        self.interrupted = False
        self._start = time.monotonic()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._start = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        # os.write, because the signal may have interrupted a print, and print is not re-entrant.
        os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without one\n")

    def reason(self) -> str | None:
        """The reason to stop now: "interrupted", "time" or "steps"; None to go on."""
        if self.interrupted:
            return "interrupted"
        if self.max_minutes is not None and time.monotonic() - self._start >= 60 * self.max_minutes:
            return "time"
        if self.max_steps is not None and self.steps >= self.max_steps:
            return "steps"
        return None

    def evaluation_seconds(self) -> float | None:
        """How long an evaluation may take: a quarter of `max_minutes`; None for no limit. Without a limit the
        evaluation of 10,000 images could take longer than the training on a slow machine."""
        return None if self.max_minutes is None else 60 * self.max_minutes / 4
