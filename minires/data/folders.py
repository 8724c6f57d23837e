"""Pictures of one's own: a folder with a sub-folder for each class becomes a data set.

    photos/cat/*.jpg          photos/train/cat/*.jpg
    photos/dog/*.png    or    photos/val/cat/*.jpg       (or valid/, validation/; drawn from train/ if there is none)
                              photos/test/cat/*.jpg      (may be absent)

Everything is checked before training: a faulty folder costs a second, not an hour.

Reading order: after split.py.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minires.data.dataset import DataError, Dataset
from minires.data.pictures import ImageError, Pictures, in_threads, read_image
from minires.data.split import check_share, held_out

MEMORY_BYTES = 1 << 30  # of pixels: a larger folder is read picture by picture, again in every epoch
MAX_CLASSES = 1000  # as many as ImageNet has; more are most likely a folder per picture
SAMPLE = 2000  # pictures of a large folder from which mean and std are computed
SAMPLE_SIZE = 64  # their size, where no size is given
IMBALANCE = 3  # times as many pictures in the largest class as in the smallest: worth a warning
FEW = 20  # validation pictures: fewer are worth a warning
SHOWN = 20  # classes whose counts are listed
STUBS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow recognises and cannot decode by itself
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def folder(
    path: str | Path,
    val: float = 0.2,
    seed: int = 0,
    image_size: int | None = None,
    grey: bool = False,
    *,
    memory_bytes: int = MEMORY_BYTES,
    log: Callable[[str], None] = print,
) -> Dataset:
    """The pictures in the folder `path`, whose sub-folders are the classes, as a `Dataset`.

    val         share of each class's training pictures that becomes the validation part; not used where there is val/
    seed        of that choice, which depends on the seed and the names: more pictures later hardly change it
    image_size  the shorter side of a picture is scaled to it, and the middle square is kept
    grey        one channel, (N, H, W, 1), in place of three

    Any file that Pillow opens counts, at any depth below its class; hidden files do not, nor files of other kinds.
    Pictures are turned upright; what is transparent becomes white; grey ones get three equal channels. With
    `image_size`, all images are uint8 arrays if they fit into `memory_bytes`, and otherwise `Pictures`, read when a
    batch needs them. Without `image_size` they are `Pictures` of their own sizes.

    The images of a part come in turns, one of each class, so that its first n are of all classes.

    `log` gets the number of pictures of each class, and a warning if the classes are of very different size.

    Raises `DataError` with one line: no such folder, no pictures, pictures beside the sub-folders, one class only, an
    empty class, more than 1000 classes, a class of validation or test pictures that training lacks, a class too small
    to be divided, and pictures that cannot be read, with their paths.
    """
    path = Path(path)
    check_share(val)
    left_out: Counter[str] = Counter()
    files = find(path, left_out)
    classes = tuple(sorted(files["train"]))
    if "val" not in files:
        files["val"] = {}
        for name, of_class in files["train"].items():
            try:
                aside = held_out([file.relative_to(path).as_posix() for file in of_class], val, seed)
            except DataError as error:
                raise DataError(f"{path}: class {name!r} {error}; add pictures, or keep none aside (val 0)") from None
            files["val"][name] = [file for file, kept in zip(of_class, aside) if kept]
            files["train"][name] = [file for file, kept in zip(of_class, aside) if not kept]
    files.setdefault("test", {})
    name = path.resolve().name
    for line in counts(name, classes, files):
        log(line)
    if left_out:
        common = sorted(left_out.items(), key=lambda of: (-of[1], of[0]))[:5]
        endings = ", ".join(f"{ending} {count:,}" for ending, count in common)
        log(f"left out: {left_out.total():,} files that Pillow does not open ({endings})")

    labels, paths = {}, {}
    for part in PARTS:  # the first picture of each class, then the second of each: the first n are a fair sample
        of_classes = [enumerate(files[part].get(of, [])) for of in classes]
        turns = sorted((turn, label, file) for label, of_class in enumerate(of_classes) for turn, file in of_class)
        labels[part], paths[part] = [label for _, label, _ in turns], [file for _, _, file in turns]
    channels = 1 if grey else 3
    images = {part: Pictures(paths[part], image_size, channels) for part in PARTS}
    if image_size and sum(map(len, images.values())) * image_size**2 * channels <= memory_bytes:
        images = _read(images)
        sample = images["train"]
    else:
        _check([file for part in PARTS for file in paths[part]])
        few = np.random.default_rng(0).permutation(len(paths["train"]))[:SAMPLE]
        sample = Pictures(paths["train"], image_size or SAMPLE_SIZE, channels)[few]
    mean, std = mean_and_std(sample)
    arrays: dict[str, Any] = {f"{part}_images": images[part] for part in PARTS}
    arrays |= {f"{part}_labels": np.array(labels[part], np.int64) for part in PARTS}
    return Dataset(name, classes=classes, mean=mean, std=std, **arrays)


def find(path: Path, left_out: Counter[str] | None = None) -> dict[str, dict[str, list[Path]]]:
    """The picture files of each class, {"train": {class: files}}, and of "val" and "test" where there are such folders.

    `left_out` counts the other files, by the endings of their names. Raises `DataError` as `folder`. Opens only files
    whose name does not end like a picture's.
    """
    left_out = Counter() if left_out is None else left_out
    if not path.is_dir():
        raise DataError(f"{path}: " + ("a file, expected a folder of pictures" if path.exists() else "no such folder"))
    inside = _folders(path)
    named = {part: [folder for name, folder in inside.items() if name.lower() in PARTS[part]] for part in PARTS}
    parts = {part: folders for part, folders in named.items() if folders}
    if set(parts) == {"train"} and not _folders(parts["train"][0]):
        parts = {}  # `train` is a class, beside `bus` and `tram`
    if parts:
        _refuse_pictures_in(path)
        known = [folder for folders in parts.values() for folder in folders]
        others = [f"{name}/" for name, folder in inside.items() if folder not in known]
        if "train" not in parts or others or len(known) > len(parts):
            there = " and ".join(f"{folder.name}/" for folder in known)
            raise DataError(
                f"{path}: has {there}{f' beside {_some(others)}' if others else ''}; expected a sub-folder for each "
                "class, or train/, val/ and test/ with such sub-folders, and nothing else"
            )
    folders = {part: of_part[0] for part, of_part in parts.items()} or {"train": path}
    found = {part: _find_classes(folder, left_out) for part, folder in folders.items()}
    classes = found["train"]
    if len(classes) == 1:
        raise DataError(f"{folders['train']}: one class only ({next(iter(classes))}); two are needed at least")
    for part in set(found) - {"train"}:
        if unknown := sorted(set(found[part]) - set(classes)):
            raise DataError(f"{folders[part]}: has pictures of {_some(unknown)}, and {folders['train']} has none")
    return found


def _find_classes(path: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """The picture files in each sub-folder of `path`."""
    folders = _folders(path)
    _refuse_pictures_in(path, among=f" {len(folders)} sub-folders" if folders else "")
    if not folders:
        raise DataError(f"{path}: holds no pictures; expected a sub-folder for each class, such as {path / 'cat'}")
    if len(folders) > MAX_CLASSES:
        raise DataError(
            f"{path}: has {len(folders):,} sub-folders ({_some(list(folders))}), each of which would be a class; "
            f"at most {MAX_CLASSES} are taken: is it the folder above or below that you mean?"
        )
    if unreadable := [name for name in folders if not name.isprintable()]:
        raise DataError(f"{path}: {unreadable[0]!r} is no name for a class: it has letters that cannot be printed")
    classes = {name: _pictures_below(folder, left_out) for name, folder in folders.items()}
    if empty := [name for name, files in classes.items() if not files]:
        others = f" (Pillow opens no {_some([*left_out])})" if left_out else ""
        if len(empty) == len(classes):
            raise DataError(f"{path}: no pictures in any of its sub-folders, {_some(empty)}{others}")
        raise DataError(
            f"{path}: no pictures in {_some(empty)}{others}; remove the folder, or put the class's pictures there"
        )
    return classes


def _folders(path: Path) -> dict[str, Path]:
    """The sub-folders by name, in order; hidden ones are left out, and what macOS leaves in archives."""
    names = sorted(entry.name for entry in _entries(path) if entry.is_dir())
    return {name: path / name for name in names if name[0] != "." and name != "__MACOSX"}


def _entries(path: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _refuse_pictures_in(path: Path, among: str = "") -> None:
    """Raise `DataError` for pictures that lie in `path` itself, and so belong to no class."""
    loose = sorted(
        path / entry.name for entry in _entries(path) if not entry.is_dir() and _is_picture(path / entry.name)
    )
    if loose:
        lie = f"{len(loose):,} picture{' lies' if len(loose) == 1 else 's lie'}"
        where = f"beside its{among}" if among else "in no sub-folder"
        raise DataError(
            f"{path}: {lie} {where} ({_some([file.name for file in loose])}); "
            "put each picture into a sub-folder named after its class"
        )


def _pictures_below(path: Path, left_out: Counter[str]) -> list[Path]:
    """The pictures in `path` and below, in order; the other files are counted."""
    files, pending, seen = [], [path], set(path.resolve().parents)
    while pending:
        here = pending.pop()
        if here.resolve() in seen:  # a link to a folder above, or to one that was here already
            continue
        seen.add(here.resolve())
        for entry in _entries(here):
            if entry.name[0] == "." or entry.name == "__MACOSX":
                continue
            file = here / entry.name
            if entry.is_dir():
                pending.append(file)
            elif _is_picture(file):
                files.append(file)
            else:
                left_out[file.suffix or file.name] += 1
    return sorted(files)


def _is_picture(path: Path) -> bool:
    """By the name's ending; a file with any other ending is a picture if Pillow recognises it."""
    if path.name[0] == "." or not path.is_file():
        return False
    known = Image.registered_extensions().get(path.suffix.lower())
    if known is not None:
        return known in Image.OPEN and known not in STUBS
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's readers raise nearly anything
        return False


def _some(names: list[str]) -> str:
    """Up to three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _read(images: dict[str, Pictures]) -> dict[str, np.ndarray]:
    """All pictures of each part as an array. Raises `DataError` naming those that cannot be read."""
    out = {part: np.empty(pictures.shape, np.uint8) for part, pictures in images.items()}

    def read(place: tuple[str, int]) -> ImageError | None:
        part, index = place
        try:
            out[part][index] = images[part][index]
        except ImageError as error:
            return error

    places = [(part, index) for part, pictures in images.items() for index in range(len(pictures))]
    _refuse([error for error in in_threads(read, places, "reading pictures") if error])
    return out


def _check(paths: list[Path]) -> None:
    """Raise `DataError` naming the files that cannot be read to their end."""

    def fault(path: Path) -> ImageError | None:
        try:
            read_image(path, least=1)
        except ImageError as error:
            return error

    _refuse([error for error in in_threads(fault, paths, "checking pictures") if error])


def _refuse(faults: list[ImageError]) -> None:
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise DataError(f"{len(faults):,} pictures cannot be read: {_some(sorted(map(str, faults)))}")


def mean_and_std(images: np.ndarray | Pictures) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact mean and std of each channel of uint8 images, on the scale 0..1, from the counts of the 256 values.

    A std of 0, of pictures of one colour, becomes 1 / 255: a Loader divides by it.
    """

    def histogram(index: int) -> np.ndarray:  # (C, 256)
        image = images[index]
        return np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(image.shape[2])])

    indices = range(len(images))
    files = isinstance(images, Pictures)
    histograms = in_threads(histogram, indices, "measuring colours") if files else map(histogram, indices)
    values, mean, std = np.arange(256) / 255, [], []
    for of_channel in sum(histograms, np.zeros((images.shape[3], 256), np.int64)):
        share = of_channel / of_channel.sum()
        mean.append(float(share @ values))
        std.append(max(float(np.sqrt(share @ (values - mean[-1]) ** 2)), 1 / 255))
    return tuple(mean), tuple(std)


def counts(name: str, classes: tuple[str, ...], files: dict[str, dict[str, list[Path]]]) -> list[str]:
    """Lines that say how many pictures each class has in each part, and a warning if the classes differ much."""
    table = {part: [len(files[part].get(of, [])) for of in classes] for part in PARTS}
    table = {part: numbers for part, numbers in table.items() if sum(numbers)}
    total = sum(map(sum, table.values()))
    lines = [f"{name}: {total:,} pictures of {len(classes)} classes"]
    titles = {"train": "training", "val": "validation", "test": "test"}
    if len(classes) <= SHOWN:
        width = max(map(len, (*classes, "class")))
        lines.append(f"  {'class':<{width}}" + "".join(f"{titles[part]:>12}" for part in table))
        for row, of in enumerate(classes):
            lines.append(f"  {of:<{width}}" + "".join(f"{numbers[row]:>12,}" for numbers in table.values()))
    else:
        for part, numbers in table.items():
            lines.append(
                f"  {titles[part]}: {min(numbers):,} to {max(numbers):,} pictures a class, {sum(numbers):,} in all"
            )
    least, most = min(table["train"]), max(table["train"])
    if most > IMBALANCE * least:
        rare, common = (classes[table["train"].index(number)] for number in (least, most))
        lines.append(
            f"WARNING: {common!r} has {most:,} training pictures, {rare!r} {least:,}: a network gains most by saying "
            f"{common!r}; look at the recall of each class (--class-weights gives all classes the same weight)"
        )
    if 0 < (judges := sum(table.get("val", []))) < FEW:
        lines.append(
            f"WARNING: {judges} validation picture{'s' * (judges > 1)}: one picture more or less that is right changes "
            f"the accuracy by {100 / judges:.0f} %"
        )
    for part in ("val", "test"):
        missing = [of for of, number in zip(classes, table.get(part, [])) if not number]
        if missing:
            lines.append(f"WARNING: no {titles[part]} pictures of {_some(missing)}")
    return lines
