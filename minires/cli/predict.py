"""From an image file to class names: what `minires predict` and examples/extract_features.py share.

An image is prepared like the training images of the network (data/pictures.py), and normalised. The sizes, the
normalisation and the class names come from the notes that a run of minires leaves beside the weights.

Reading order: after models/recognise.py. Next: commands.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minires.functional as F
from minires.data import CIFAR10
from minires.data.pictures import ImageError, read_image, square
from minires.models import CifarResNet, ResNet, from_weights, imagenet_classes
from minires.models.pretrained import IMAGENET_MEAN, IMAGENET_RESIZE, IMAGENET_SIZE, IMAGENET_STD, imagenet_file
from minires.nn.fold import fold
from minires.tensor import Tensor, no_grad
from minires.train.folder import weights_file
from minires.weights import WeightsError, read_metadata

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an input: scale the shorter side to `resize`, crop the middle `size` x `size`, normalise
    by (pixel / 255 - mean) / std."""

    resize: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def read(self, path: Path) -> np.ndarray:
        """The picture at `path` as uint8 (size, size, C). Raises `ImageError`."""
        return square(read_image(path, 2 * self.resize, grey=len(self.mean) == 1), self.resize, self.size)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, size, size, C) -> float32 of the same shape."""
        return (pixels / np.float32(255) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


@dataclass(frozen=True)
class Classifier:
    """A network ready to classify images: in evaluation mode, with batch norm folded into the convolutions."""

    model: ResNet | CifarResNet
    preparation: Preparation
    classes: tuple[str, ...]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 images (N, size, size, C) -> (N, K)."""
        device = next(self.model.parameters()).device
        with no_grad():
            return F.softmax(self.model(Tensor(self.preparation.normalise(pixels)).to(device))).numpy()


def open_classifier(
    weights: str | Path,
    depth: int = 101,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> Classifier:
    """The network in `weights`, with the preparation of its images and the names of its classes.

    weights              the folder of a run, a file of weights of any ResNet, or "imagenet"
    depth                of the network, for "imagenet" only: other networks are recognised
    classes, image_size  names, and the size of the input; None: those noted beside the weights

    `log` gets a line for each assumption. Raises `WeightsError`, or `FileNotFoundError`.
    """
    path = imagenet_file(depth, log) if str(weights) == "imagenet" else weights_file(weights)
    model = from_weights(path, log)
    notes = _notes(path, model.conv1.weight.shape[2], log)
    count, names = model.fc.out_features, None
    if classes is not None:
        names = tuple(classes)
    elif len(notes.get("classes", ())) == count:
        names = tuple(map(str, notes["classes"]))
    elif "classes" in notes:
        raise WeightsError(
            f"{path}: has {count} classes, its notes name {len(notes['classes'])}; give names (--classes)"
        )
    elif count == 1000:
        names = imagenet_classes()
        if str(weights) != "imagenet":
            log(f"{path}: says nothing of its 1000 classes, taken for those of ImageNet")
    elif count == 10 and str(notes.get("dataset", "CIFAR-10")).startswith("CIFAR-10"):
        names = CIFAR10_CLASSES
        if "dataset" not in notes:
            log(f"{path}: says nothing of its 10 classes, taken for those of CIFAR-10")
    else:
        names = tuple(f"class {number}" for number in range(count))
        log(f"{path}: says nothing of its {count} classes: numbers instead of names")
    if len(names) != count:
        raise WeightsError(f"{path}: has {count} classes, {len(names)} names are given")
    preparation = _preparation(path, model, notes, image_size, str(weights) == "imagenet", log)
    return Classifier(fold(model).to(device), preparation, names)


def preparation_of(weights: str | Path, model: ResNet | CifarResNet, log: Callable[[str], None] = print) -> Preparation:
    """The preparation that `model` has learned with: the one noted in the file or folder `weights`, or "imagenet"."""
    if str(weights) == "imagenet":
        return _preparation(Path(weights), model, {}, None, True, log)
    path = weights_file(weights)
    return _preparation(path, model, _notes(path, model.conv1.weight.shape[2], log), None, False, log)


def _preparation(
    path: Path,
    model: ResNet | CifarResNet,
    notes: dict[str, Any],
    image_size: int | None,
    imagenet: bool,
    log: Callable[[str], None],
) -> Preparation:
    """By the `notes`; what they do not say is assumed, and logged unless the weights are torchvision's (`imagenet`)."""
    small, channels = model.conv1.kernel_size == (3, 3), model.conv1.weight.shape[2]
    if channels not in (1, 3):
        raise WeightsError(f"{path}: takes images of {channels} channels, and pictures have 1 or 3")
    mean, std = (CIFAR10.mean, CIFAR10.std) if small else (IMAGENET_MEAN, IMAGENET_STD)
    if channels == 1:
        mean, std = (float(np.mean(mean)),), (float(np.mean(std)),)
    if "mean" in notes:
        mean, std = notes["mean"], notes["std"]
    elif not imagenet:
        log(f"{path}: says nothing of its normalisation, taken for that of {'CIFAR-10' if small else 'ImageNet'}")
    size = image_size or notes.get("image_size") or (32 if small else IMAGENET_SIZE)
    if not image_size and "image_size" not in notes and not imagenet:
        log(f"{path}: says nothing of the size of its images, taken for {size}x{size}")
    # ImageNet's networks are tested on the middle of an image; ours on the whole image, or its largest square.
    by_torchvision = model.fc.out_features == 1000 and not small and "dataset" not in notes
    resize = IMAGENET_RESIZE * size // IMAGENET_SIZE if by_torchvision else size
    return Preparation(resize, size, tuple(mean), tuple(std))


def _notes(path: Path, channels: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The notes of a run beside the weights (config.json) and in their file; {} for files from elsewhere.

    What is not usable, for a network that takes images of so many `channels`, is left out and logged.
    """
    notes: dict[str, Any] = {}
    for text in (_config(path), read_metadata(path).get("minires", "{}")):
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            notes |= found.get("settings", {}) if isinstance(found.get("settings"), dict) else {}
            notes |= found
    size = notes.get("image_size")
    usable = {
        "mean": all(_are_numbers(notes.get(name), channels) for name in ("mean", "std")),  # they are only used together
        "classes": isinstance(notes.get("classes"), list),
        "image_size": type(size) is int and size >= 1,  # True is an int too
    }
    for name in [name for name, is_usable in usable.items() if not is_usable]:
        if notes.pop(name, None) is not None:
            log(f"{path}: its note on {name} is not usable, as if there were none")
    return notes


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(number) in (int, float) for number in value)


def _config(path: Path) -> str:
    try:
        return path.with_name("config.json").read_text()
    except (OSError, UnicodeDecodeError):
        return "{}"


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files in `paths`, then those in its folders, at any depth, in order; hidden files are left out."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file())
            files += sorted(f for f in inside if not any(p.startswith(".") for p in f.relative_to(path).parts))
        else:
            files.append(path)
    return files


def batches(
    files: Sequence[Path], preparation: Preparation, batch_size: int, skip: Callable[[ImageError], None]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """(files, uint8 (n, size, size, C)) for `batch_size` files at a time; `skip` gets the error of each bad file."""
    for start in range(0, len(files), batch_size):
        chunk, pixels = [], []
        for path in files[start : start + batch_size]:
            try:
                pixels.append(preparation.read(path))
                chunk.append(path)
            except ImageError as error:
                skip(error)
        if chunk:
            yield chunk, np.stack(pixels)
