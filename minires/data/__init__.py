"""From files on disk to batches of float32 images: where a training run starts.

Reading order: dataset.py (what a data set is), augment.py (random crops and flips), loader.py (batches). When you want
them: archive.py and cifar.py (CIFAR-10 and CIFAR-100: downloading, verifying and reading them without trusting them),
shapes.py (Shapes-10, the set that is drawn).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minires.data.cifar import CIFAR10, CIFAR100, Source, cifar10, cifar100
from minires.data.dataset import DataError, Dataset, NotAvailable
from minires.data.loader import Loader
from minires.data.shapes import shapes10

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DataError",
    "Dataset",
    "Loader",
    "NotAvailable",
    "Source",
    "cifar10",
    "cifar100",
    "load",
    "shapes10",
]


def load(
    name: str = "auto", data_dir: str | Path = "data", download: bool = True, log: Callable[[str], None] = print
) -> Dataset:
    """The data set called `name`: "cifar10", "cifar100", "shapes", or "auto".

    "auto" is CIFAR-10 if CIFAR-10 is in `data_dir` or can be downloaded; otherwise Shapes-10, after a warning through
    `log`. The other names never substitute, and "auto" never substitutes for a damaged CIFAR-10: they raise
    `DataError`, whose text says what to do. Raises `ValueError` for an unknown `name`.
    """
    if name == "cifar10":
        return cifar10(data_dir, download, log)
    if name == "cifar100":
        return cifar100(data_dir, download, log)
    if name == "shapes":
        return shapes10(data_dir, log=log)
    if name != "auto":
        raise ValueError(f"data: {name!r} is unknown, expected 'auto', 'cifar10', 'cifar100' or 'shapes'")
    try:
        return cifar10(data_dir, download, log)
    except NotAvailable as error:
        log(f"WARNING: {error}")
        log("WARNING: NOT CIFAR-10: continuing with Shapes-10, the drawn data set; its accuracies are no CIFAR-10 ones")
        return shapes10(data_dir, log=log)
