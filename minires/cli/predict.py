"""From an image file to class names: what `minires predict` and examples/extract_features.py share.

An image is prepared like the training images of the network: rotated by its EXIF tag, scaled, cropped, normalised.
The sizes, the normalisation and the class names come from the notes that a run of minires leaves beside the weights.

Reading order: after models/recognise.py. Next: commands.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

import minires.functional as F
from minires import nn
from minires.data import CIFAR10, DataError
from minires.models import from_weights, imagenet_classes
from minires.models.pretrained import IMAGENET_MEAN, IMAGENET_RESIZE, IMAGENET_SIZE, IMAGENET_STD, imagenet_file
from minires.nn.fold import fold
from minires.tensor import Tensor, no_grad
from minires.train.folder import weights_file
from minires.weights import WeightsError, read_metadata

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class ImageError(DataError):
    """A file that is not an image, or a damaged one. The text is one line naming it."""


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an input: scale the shorter side to `resize`, crop the middle `size` x `size`, normalise
    by (pixel / 255 - mean) / std."""

    resize: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An RGB image of any size as uint8 (size, size, 3)."""
        width, height = image.size
        short = min(width, height)
        if max(width, height) > 8 * short:  # scaling a whole strip of 1 x 10,000 pixels would take gigabytes
            image = ImageOps.fit(image, (min(width, 8 * short), min(height, 8 * short)))
            width, height = image.size
        scaled = (max(self.resize * width // short, self.resize), max(self.resize * height // short, self.resize))
        left, top = (round((side - self.size) / 2) for side in scaled)
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, size, size, 3) -> float32 of the same shape."""
        return (pixels / np.float32(255) - np.float32(self.mean)) / np.float32(self.std)


def read_image(path: str | Path) -> Image.Image:
    """The image at `path` in RGB: upright, transparent parts on white. Raises `ImageError`."""
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's readers raise nearly anything for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif "cannot identify" in reason:
            reason = "not an image"
        raise ImageError(f"{path}: cannot be read ({reason})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB: grey of 8, 16 or 32 bits, palettes, CMYK, transparency."""
    if image.mode[0] in "IF":  # Pillow would clip 16-bit grey at 255: a white image
        grey = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        largest = np.abs(grey).max(initial=0)
        if image.mode.startswith("I;16"):
            scale = 255 / 65535
        elif image.mode == "F" and largest <= 1:
            scale = 255
        else:
            scale = 255 / max(largest, 255)
        return Image.fromarray((grey * scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


@dataclass(frozen=True)
class Classifier:
    """A network ready to classify images: in evaluation mode, with batch norm folded into the convolutions."""

    model: nn.Module
    preparation: Preparation
    classes: tuple[str, ...]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 images (N, size, size, 3) -> (N, K)."""
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
    count, small = model.fc.out_features, model.conv1.kernel_size == (3, 3)
    notes = _notes(path, log)
    mean, std, names = IMAGENET_MEAN, IMAGENET_STD, None
    if "mean" in notes:
        mean, std = notes["mean"], notes["std"]
    elif small:
        mean, std = CIFAR10.mean, CIFAR10.std
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
    if "mean" not in notes and str(weights) != "imagenet":
        log(f"{path}: says nothing of its normalisation, taken for that of {'CIFAR-10' if small else 'ImageNet'}")
    if len(names) != count:
        raise WeightsError(f"{path}: has {count} classes, {len(names)} names are given")
    size = image_size or notes.get("image_size") or (32 if small else IMAGENET_SIZE)
    if not image_size and "image_size" not in notes and str(weights) != "imagenet":
        log(f"{path}: says nothing of the size of its images, taken for {size}x{size}")
    # ImageNet's networks are tested on the middle of an image; ours on the whole image.
    resize = IMAGENET_RESIZE * size // IMAGENET_SIZE if count == 1000 and not small else size
    return Classifier(fold(model).to(device), Preparation(resize, size, tuple(mean), tuple(std)), names)


def _notes(path: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """The notes of a run beside the weights (config.json) and in their file; {} for files from elsewhere."""
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
        "mean": all(_three_numbers(notes.get(name)) for name in ("mean", "std")),  # they are only used together
        "classes": isinstance(notes.get("classes"), list),
        "image_size": type(size) is int and size >= 1,  # True is an int too
    }
    for name in [name for name, is_usable in usable.items() if not is_usable]:
        if notes.pop(name, None) is not None:
            log(f"{path}: its note on {name} is not usable, as if there were none")
    return notes


def _three_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(number) in (int, float) for number in value)


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
    """(files, uint8 (n, size, size, 3)) for `batch_size` files at a time; `skip` gets the error of each bad file."""
    for start in range(0, len(files), batch_size):
        chunk, pixels = [], []
        for path in files[start : start + batch_size]:
            try:
                pixels.append(preparation.pixels(read_image(path)))
                chunk.append(path)
            except ImageError as error:
                skip(error)
        if chunk:
            yield chunk, np.stack(pixels)
