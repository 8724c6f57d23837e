"""From files on disk to batches of float32 images: where a training run starts.

Reading order: dataset.py (what a data set is), augment.py (random crops and flips), loader.py (batches). When you want
them: archive.py and cifar.py (CIFAR-10 and CIFAR-100: downloading, verifying and reading them without trusting them),
shapes.py (Shapes-10, the set that is drawn); pictures.py, host.py, split.py and folders.py (pictures of one's own).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minires.data.cifar import CIFAR10, CIFAR100, Source, cifar10, cifar100
from minires.data.dataset import DataError, Dataset, NotAvailable
from minires.data.folders import folder
from minires.data.host import RandomResizedCrop
from minires.data.loader import Loader
from minires.data.pictures import ImageError, Pictures
from minires.data.shapes import shapes10
from minires.data.split import class_weights, split

__all__ = [
    "CIFAR10", "CIFAR100", "NAMES", "DataError", "Dataset", "ImageError", "Loader", "NotAvailable", "Pictures",
    "RandomResizedCrop", "Source", "cifar10", "cifar100", "class_weights", "folder", "load", "shapes10", "split",
]  # fmt: skip

NAMES = ("auto", "cifar10", "cifar100", "shapes")


def load(
    name: str | Path = "auto",
    data_dir: str | Path = "data",
    download: bool = True,
    log: Callable[[str], None] = print,
    *,
    val: float | None = None,
    image_size: int | None = None,
    grey: bool = False,
) -> Dataset:
    """The data set called `name`: "cifar10", "cifar100", "shapes", "auto", or the path of a folder of pictures.

    "auto" is CIFAR-10 if CIFAR-10 is in `data_dir` or can be downloaded; otherwise Shapes-10, after a warning through
    `log`. The other names never substitute, and "auto" never substitutes for a damaged CIFAR-10: they raise
    `DataError`, whose text says what to do.

    val               share of the training images that becomes the validation part (default: 0, of a folder 0.2)
    image_size, grey  of the pictures in a folder, see `folder`
    """
    if name not in NAMES:
        if not Path(name).exists():
            raise DataError(f"{name}: no such folder of pictures, and none of {', '.join(NAMES)}")
        return folder(name, 0.2 if val is None else val, image_size=image_size, grey=grey, log=log)
    dataset = _named(str(name), data_dir, download, log)
    return split(dataset, val) if val else dataset


def _named(name: str, data_dir: str | Path, download: bool, log: Callable[[str], None]) -> Dataset:
    if name == "cifar100":
        return cifar100(data_dir, download, log)
    if name == "shapes":
        return shapes10(data_dir, log=log)
    try:
        return cifar10(data_dir, download, log)
    except NotAvailable as error:
        if name == "cifar10":
            raise
        log(f"WARNING: {error}")
        log("WARNING: NOT CIFAR-10: continuing with Shapes-10, the drawn data set; its accuracies are no CIFAR-10 ones")
        return shapes10(data_dir, log=log)
