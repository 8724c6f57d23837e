"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

60,000 colour photographs of 32x32 pixels, 50,000 of them for training. The "python version" used here is a few files,
each a dict pickled by Python 2. b"data" is uint8 (N, 3072): the 1024 red values of an image first, then green, then
blue, each plane row by row. b"labels" (CIFAR-100: b"fine_labels") is a list of N integers.

Opening a downloaded pickle with `pickle.load` means running a stranger's code. minires/files/pickles.py reads and
explains pickles without running code.

Reading order: after archive.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.data.archive import extract
from minires.data.dataset import DataError, Dataset, NotAvailable
from minires.files import pickles
from minires.files.download import Checksum, DownloadError, download, fault, looks_like_html

PIXELS = 3 * 32 * 32
META_LIMIT = 1 << 20  # bytes; the official ones have a few hundred or thousand
PICKLE_BUDGET = 64 << 20  # bytes beside the pixels; CIFAR-100's training file, of 300,000 instructions, takes 40 MB


class Batch(NamedTuple):
    """One of the official files."""

    file: str
    images: int
    md5: str  # of the official file


@dataclass(frozen=True)
class Source:
    """Where a CIFAR data set comes from and what its files look like."""

    name: str
    url: str
    size: int  # bytes of the archive
    md5: str  # of the archive
    folder: str  # inside the archive, and in the data directory
    train: tuple[Batch, ...]
    test: tuple[Batch, ...]
    meta: str  # the file with the class names
    meta_md5: str
    labels_key: str
    names_key: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# mean and std: of all training pixels of a channel, on the scale 0..1. Many CIFAR-10 recipes use (0.2023, 0.1994,
# 0.2010), the average over images of each image's own std. Normalising with these leaves a standard deviation of 1.22
# to 1.30 instead of 1.
CIFAR10 = Source(
    name="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    size=170_498_071,
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train=(
        Batch("data_batch_1", 10_000, "c99cafc152244af753f735de768cd75f"),
        Batch("data_batch_2", 10_000, "d4bba439e000b95fd0a9bffe97cbabec"),
        Batch("data_batch_3", 10_000, "54ebc095f3ab1f0389bbae665268c751"),
        Batch("data_batch_4", 10_000, "634d18415352ddfa80567beed471001a"),
        Batch("data_batch_5", 10_000, "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(Batch("test_batch", 10_000, "40351d587109b95175f43aff81a1287e"),),
    meta="batches.meta",
    meta_md5="5ff9c542aee3614f3951f8cda6e48888",
    labels_key="labels",
    names_key="label_names",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Source(
    name="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    size=169_001_437,
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train=(Batch("train", 50_000, "16019d7e3df5f24257cddd939b257f8d"),),
    test=(Batch("test", 10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    meta="meta",
    meta_md5="7973b15100ade9c7d40fb424638fde48",
    labels_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar10(
    data_dir: str | Path = "data", download: bool = True, log: Callable[[str], None] = print, source: Source = CIFAR10
) -> Dataset:
    """CIFAR-10 from `data_dir`: 50,000 + 10,000 uint8 images (N, 32, 32, 3) of ten classes.

    Looks for the folder cifar-10-batches-py (yours or unpacked earlier), then for cifar-10-python.tar.gz, then
    downloads the archive if `download`. An archive must have the official MD5 sum. A folder may have other sums: every
    array in it is checked, and `Dataset.name` is plain "CIFAR-10" for the official files only. Raises `NotAvailable`
    when there is nothing to use, and `DataError` for damaged files.
    """
    return _cifar(source, Path(data_dir), download, log)


def cifar100(
    data_dir: str | Path = "data", download: bool = True, log: Callable[[str], None] = print, source: Source = CIFAR100
) -> Dataset:
    """CIFAR-100 with its hundred fine labels; otherwise like `cifar10`, with cifar-100-python(.tar.gz)."""
    return _cifar(source, Path(data_dir), download, log)


def _cifar(source: Source, data_dir: Path, may_download: bool, log: Callable[[str], None]) -> Dataset:
    folder = data_dir / source.folder
    archive = data_dir / source.url.rpartition("/")[2]
    batches = (*source.train, *source.test)
    if not folder.exists():
        if not archive.exists():
            _obtain(source, archive, folder, may_download, log)
        _check_archive(archive, source)
        extract(archive, folder, {**{b.file: _largest(b) for b in batches}, source.meta: META_LIMIT})

    raw = _read_file(folder / source.meta, META_LIMIT)
    classes = _class_names(folder / source.meta, raw, source)
    official = _md5(raw) == source.meta_md5
    images, labels, filenames = [], [], []
    for batch in batches:
        path = folder / batch.file
        raw = _read_file(path, _largest(batch))
        official &= _md5(raw) == batch.md5
        content = read_pickle(raw, path)
        images.append(_images(path, content, batch))
        labels.append(_labels(path, content, batch, source))
        filenames.extend(_texts(content.get("filenames")))

    # The official files list images called NAME.png. A re-encoding as JPEG, made to save space, lists NAME.jpg. The
    # pixels of the JPEGs differ by a few grey levels, and networks reach lower accuracies: the name of the data set
    # says JPEG. Files that are neither (cut, relabelled, synthetic, damaged unnoticed) get a name of their own too.
    jpeg = bool(filenames) and all(name.endswith(".jpg") for name in filenames)
    name = source.name if official else f"{source.name} (JPEG)" if jpeg else f"{source.name} (modified)"
    n = len(source.train)
    return Dataset(
        name,
        np.concatenate(images[:n]),
        np.concatenate(labels[:n]),
        np.concatenate(images[n:]),
        np.concatenate(labels[n:]),
        classes,
        source.mean,
        source.std,
    )


def _obtain(source: Source, archive: Path, folder: Path, may_download: bool, log: Callable[[str], None]) -> None:
    advice = f"get {source.url} by other means and put it at {archive}, or lay its files out in {folder}"
    if not may_download:
        raise NotAvailable(f"{source.name} is not in {archive.parent} and downloading is off; {advice}")
    try:
        download(source.url, archive, source.size, Checksum("md5", source.md5), log)
    except DownloadError as error:
        raise NotAvailable(
            f"{source.name} is not in {archive.parent} and cannot be downloaded: {error}; {advice}"
        ) from None


def _check_archive(archive: Path, source: Source) -> None:
    try:
        wrong = fault(archive, Checksum("md5", source.md5))
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
    if wrong:
        raise DataError(f"{archive}: {wrong}; delete it to download it again, or get {source.url}")


def _largest(batch: Batch) -> int:
    """The largest size of the file, in bytes: twice the pixels, for labels, names and any pickle protocol."""
    return 2 * PIXELS * batch.images + META_LIMIT


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def _read_file(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: has {size:,} bytes, expected at most {limit:,}: not the official file layout")
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); the folder has to be complete: add the file, or delete "
            f"{path.parent} to have it downloaded again"
        ) from None


def read_pickle(raw: bytes, path: Path) -> dict[str, Any]:
    """The dict in a pickled batch file of CIFAR, without running code from the file.

    `raw` is the file's content, `path` its name for the errors. An array becomes a stand-in, see `_images`.
    Raises `DataError` for anything but a dict of the types named above, for a truncated file, and for a file made to
    use far more memory or stack than its size.
    """
    # python2_bytes: Python 2's str is bytes. Most of the bytes here are pixels, which need a wide window.
    window = pickles.Window(memoryview(raw), PICKLE_BUDGET + 2 * len(raw), longest=max(len(raw), 1))
    try:
        content = pickles.load(window, pickles.NUMPY, python2_bytes=True)
    except pickles.PickleError as error:
        if looks_like_html(raw[:512]):
            raise DataError(f"{path}: this is a web page (HTML), not a batch file; delete it") from None
        raise DataError(f"{path}: not a readable batch file ({len(raw):,} bytes): the pickle {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dict of images and labels")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, pickles.Bytes):
        return value.text
    return value if isinstance(value, str) else f"<{type(value).__name__}>"


def _texts(values: Any) -> list[str]:
    return [_text(value) for value in values] if isinstance(values, list) else []


def _images(path: Path, content: dict[str, Any], batch: Batch) -> np.ndarray:
    """The images of a batch file, uint8 (N, 32, 32, 3)."""
    array = content.get("data")
    if not isinstance(array, pickles.Array):
        raise DataError(f"{path}: has no array 'data', expected uint8 ({batch.images}, {PIXELS})")
    if array.shape != (batch.images, PIXELS) or array.dtype not in ("u1", "uint8"):
        raise DataError(
            f"{path}: 'data' is {array.dtype} {array.shape}, expected u1 (uint8) ({batch.images}, {PIXELS})"
        )
    raw = array.raw.text.encode("latin1", "replace") if isinstance(array.raw, pickles.Bytes) else array.raw
    if len(raw) != batch.images * PIXELS:
        raise DataError(f"{path}: 'data' has {len(raw):,} bytes of pixels, expected {batch.images * PIXELS:,}")
    rows = np.frombuffer(raw, np.uint8).reshape(array.shape, order="F" if array.order == "F" else "C")
    # (N, 3072) -> (N, 3, 32, 32): red, green, blue planes -> (N, 32, 32, 3): channels last
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _labels(path: Path, content: dict[str, Any], batch: Batch, source: Source) -> np.ndarray:
    """The labels of a batch file, int64 (N,)."""
    key, labels = source.labels_key, content.get(source.labels_key)
    if not isinstance(labels, list) or len(labels) != batch.images:
        found = f"{len(labels)} labels" if isinstance(labels, list) else "no list of labels"
        raise DataError(f"{path}: {key!r} has {found}, expected {batch.images}")
    for i, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < source.num_classes:
            shown = label if type(label) is int else type(label).__name__
            raise DataError(f"{path}: {key!r}[{i}] is {shown}, expected an integer from 0 to {source.num_classes - 1}")
    return np.array(labels, np.int64)


def _class_names(path: Path, raw: bytes, source: Source) -> tuple[str, ...]:
    names = _texts(read_pickle(raw, path).get(source.names_key))
    if len(names) != source.num_classes:
        raise DataError(f"{path}: {source.names_key!r} has {len(names)} names, expected {source.num_classes}")
    return tuple(names)
