"""Weights that others have trained: torchvision's for ImageNet, and files of any origin.

torchvision's are looked for in the cache directory, downloaded there once if they are missing, and known by the first
digits of their SHA-256 sum, which are part of their name. The cache directory is $MINIRES_CACHE, or else
$XDG_CACHE_HOME/minires, or else ~/.cache/minires.

Reading order: after weights/. Next: recognise.py.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minires import nn
from minires.files.download import Checksum, DownloadError, download, fault
from minires.nn.module import M
from minires.weights import WeightsError, load_weights

ADDRESS = "https://download.pytorch.org/models/"
# IMAGENET1K_V1 of torchvision: trained by its first recipe, 224x224. Top-1 accuracy in %.
IMAGENET = {
    18: "resnet18-f37072fd.pth",  # 69.76
    34: "resnet34-b627a593.pth",  # 73.31
    50: "resnet50-0676ba61.pth",  # 76.13
    101: "resnet101-63fe2227.pth",  # 77.37
    152: "resnet152-394f9c45.pth",  # 78.31
}
# How their images were prepared: the shorter side scaled to 256, the middle 224x224, then (pixel / 255 - mean) / std.
IMAGENET_RESIZE, IMAGENET_SIZE = 256, 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Weights = str | Path | None  # "imagenet" or the path of a file; None for random ones


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 names of ImageNet's classes, in the order of the outputs, as torchvision has them."""
    text = files("minires.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def cache_directory() -> Path:
    """Where downloaded weights are kept."""
    if os.environ.get("MINIRES_CACHE"):
        return Path(os.environ["MINIRES_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minires"


def imagenet_file(depth: int, log: Callable[[str], None] = print, address: str = ADDRESS) -> Path:
    """The file of torchvision's weights for ResNet-`depth`: from the cache directory, or downloaded to it.

    Raises `WeightsError`, which says where to put the file, when it cannot be had, and for one with a wrong checksum.
    """
    if depth not in IMAGENET:
        known = ", ".join(map(str, IMAGENET))
        raise WeightsError(f"weights='imagenet': there are none for ResNet-{depth}, only for depths {known}")
    name = IMAGENET[depth]
    path, url = cache_directory() / name, address + name
    checksum = Checksum("sha256", name.removesuffix(".pth").rpartition("-")[2])
    if path.exists():
        try:
            wrong = fault(path, checksum)
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        if wrong:
            raise WeightsError(f"{path}: {wrong}; delete it to download it again, or get {url}")
        return path
    try:
        download(url, path, None, checksum, log)
    except DownloadError as error:
        raise WeightsError(
            f"{name} is not in {path.parent} and cannot be downloaded: {error}; get {url} by other means and put it at "
            f"{path}, or say weights=PATH"
        ) from None
    return path


class Zeros:
    """A generator that draws only zeros, at no cost: for a network whose weights will be loaded.

    Drawing ResNet-101's 44.5 million weights twice, for its layers and for He's initialisation, takes half a second.
    """

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros."""
        return np.broadcast_to(np.float32(0), shape)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros."""
        return self.standard_normal(shape)


def with_weights(make: Callable[..., M], depth: int, weights: Weights, options: Mapping[str, Any]) -> M:
    """`make(**options)`, a ResNet-`depth`, with `weights` as `load_into` takes them, or with random ones for None."""
    if "pretrained" in options:
        raise TypeError("pretrained: torchvision's weights are weights='imagenet' here, no weights are weights=None")
    if weights is None:
        return make(**options)
    model = make(**{"generator": Zeros(), **options})
    load_into(model, weights, depth)
    return model


def load_into(model: nn.Module, weights: str | Path, depth: int, log: Callable[[str], None] = print) -> None:
    """Load `weights`, "imagenet" or the path of a file, into `model`, a ResNet-`depth`.

    Prefixes that other programs put before the names are taken away, and names that differ are translated; `log` is
    told. Raises `WeightsError` if the file cannot be read, cannot be had, or does not fit, and `FileNotFoundError`.
    """
    a_name = not isinstance(weights, Path) and str(weights).upper().startswith(("DEFAULT", "IMAGENET"))
    if not isinstance(weights, (str, Path)) or (a_name and weights != "imagenet" and not Path(weights).suffix):
        raise WeightsError(f"weights: {weights!r}: torchvision's weights are weights='imagenet' here; else a path")
    path = imagenet_file(depth, log) if weights == "imagenet" else Path(weights)
    state = translate(load_weights(path, strip_prefix=True, log=log), path, log)
    try:
        model.load_state_dict(state)
    except ValueError as error:
        # Weights of another depth differ in hundreds of names: the first few say enough.
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        classes, wanted = np.size(state.get("fc.bias", ())), model.state_dict()["fc.bias"].size
        if classes not in (0, wanted):
            reason += (
                f". It has {classes} classes, num_classes is {wanted}: load it with num_classes={classes}, "
                f"then model.fc = nn.Linear(model.fc.in_features, {wanted})"
            )
        raise WeightsError(f"{path}: {reason}") from None


def translate(state: Mapping[str, np.ndarray], path: Path, log: Callable[[str], None] = print) -> dict[str, np.ndarray]:
    """`state` in our names: what is called linear.* in github.com/akamaster/pytorch_resnet_cifar10 is fc.* here.

    All else is the same there: names (but for compressible_conv1 ... in some of its versions), layouts, and shortcuts
    without parameters (option A).
    """
    if any("compressible_" in name for name in state):
        log(f"{path}: took 'compressible_' out of the names")
        state = {name.replace("compressible_", ""): array for name, array in state.items()}
    state = dict(state)
    if "linear.weight" in state and "fc.weight" not in state:
        log(f"{path}: 'linear' is called 'fc' here")
        state = {f"fc.{n.removeprefix('linear.')}" if n.startswith("linear.") else n: a for n, a in state.items()}
    return state
