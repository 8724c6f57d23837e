"""The progress of an epoch: a bar in a terminal or a notebook, a line every half minute in a file.

Reading order: after stop.py. Next: folder.py.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

LINE_SECONDS = 30  # between two lines, without a terminal
RECENT = 10  # batches over which loss and accuracy are averaged


def say(text: str) -> None:
    """Print a line now, above the bar if there is one."""
    tqdm.write(text)
    sys.stdout.flush()  # in a pipe a line would wait until 8 KiB are full


class Progress:
    """Progress through the `total` batches of an epoch, of which `done` were done in an earlier session.

    first  whether it is the first epoch: without a terminal, it has a line for its first batch
    """

    def __init__(self, title: str, total: int, done: int = 0, log: Callable[[str], None] = say, first: bool = True):
        self.title, self.total, self.done, self.log, self.first = title, total, done, log, first
        # disable=None: no bar where stderr is neither a terminal nor a notebook's.
        bar = tqdm(total=total, initial=done, desc=title, unit="batch", leave=False, dynamic_ncols=True, disable=None)
        self.bar = None if bar.disable else bar
        self.start = self.last_line = time.monotonic()
        self.images = self.batches = 0  # of this session
        self.told: int | None = None  # the batch at the last printed line; None: no line yet
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.accuracies: deque[float] = deque(maxlen=RECENT)

    def update(self, loss: float, accuracy: float, images: int) -> None:
        """Count one more batch: loss, accuracy (0 to 1) and number of images."""
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        self.images += images
        self.batches += 1
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix_str(self._figures(), refresh=False)
            self.bar.update()
        elif (self.first and self.batches == 1) or time.monotonic() - self.last_line >= LINE_SECONDS:
            self._line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.told not in (None, self.done):
            self._line()

    def _figures(self) -> str:
        loss, accuracy = sum(self.losses) / len(self.losses), sum(self.accuracies) / len(self.accuracies)
        speed = self.images / max(time.monotonic() - self.start, 1e-9)
        return f"loss {loss:.3f}, accuracy {100 * accuracy:.1f} %, {speed:.4g} images/s"

    def _line(self) -> None:
        self.last_line, self.told = time.monotonic(), self.done
        left = (self.last_line - self.start) / self.batches * (self.total - self.done)
        self.log(f"{self.title}, batch {self.done}/{self.total}: {self._figures()}, {format_seconds(left)} left")


def epoch_line(record: dict[str, Any], epochs: int, part: str) -> str:
    """The line that the terminal shows for an epoch."""
    return (
        f"epoch {record['epoch']:.4g}/{epochs}: loss {record['loss']:.4f}, accuracy {100 * record['accuracy']:.2f} %, "
        f"{part} loss {record[f'{part}_loss']:.4f}, {part} accuracy {100 * record[f'{part}_accuracy']:.2f} %, "
        f"{record['images_per_second']:.4g} images/s, lr {record['lr']:.4g}, {format_seconds(record['seconds'])}"
    )


def format_seconds(seconds: float) -> str:
    """4.2 -> '4 s', 130 -> '2 min', 9000 -> '2.5 h', 200000 -> '2.3 days'."""
    for size, unit, digits in ((86_400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
