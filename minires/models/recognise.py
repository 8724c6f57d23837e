"""From weights to the network they belong to: names and shapes say which it is.

Reading order: after pretrained.py. Next: cli/predict.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minires import nn
from minires.models import resnet
from minires.models.pretrained import Zeros, translate
from minires.models.resnet import ResNet
from minires.models.resnet_cifar import CifarResNet
from minires.weights import WeightsError, load_weights, read_metadata


def from_weights(path: str | Path, log: Callable[[str], None] = print) -> ResNet | CifarResNet:
    """The network whose weights are in the file at `path`, with them.

    A plain CIFAR network has the names and shapes of a residual one; it is told by the note that its training left in
    the file. Raises as `load_weights`, and `WeightsError` for the weights of another network.
    """
    path = Path(path)
    state = translate(load_weights(path, strip_prefix=True, log=log), path, log)
    try:
        return from_state_dict(state, shortcut=not _noted_as_plain(path))
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def _noted_as_plain(path: Path) -> bool:
    try:
        return json.loads(read_metadata(path)["minires"])["settings"]["plain"] is True
    except (LookupError, TypeError, ValueError):  # a file from elsewhere
        return False


def from_state_dict(state: Mapping[str, np.ndarray], shortcut: bool = True) -> ResNet | CifarResNet:
    """The ResNet (18 ... 152 or 20 ... 1202) that `state` belongs to, with its weights.

    shortcut  False for a plain network of 20 ... 1202 layers, which has the names and shapes of a residual one

    Raises `ValueError` for the weights of another network.
    """
    blocks = dict.fromkeys(range(1, 5), 0)
    for name in state:
        if match := re.match(r"layer([1-4])\.(\d{1,3})\.conv1\.weight$", name):
            blocks[int(match[1])] = max(blocks[int(match[1])], int(match[2]) + 1)
    counts = tuple(count for count in blocks.values() if count)
    first, last = np.shape(state.get("conv1.weight", ())), np.shape(state.get("fc.weight", ()))
    if len(first) != 4 or len(last) != 2 or not counts:
        raise ValueError(f"not the weights of a ResNet: its names are like {', '.join(list(state)[:3]) or '(none)'}")
    classes = last[0]
    options: dict[str, Any] = {"in_channels": first[1], "generator": Zeros()}
    if blocks[4] == 0:
        depths: dict[tuple[int, ...], int] = {(n, n, n): 6 * n + 2 for n in range(1, 201)}
        if counts not in depths:
            raise ValueError(f"a ResNet with {counts} blocks, expected three stages of n blocks each")
        model = CifarResNet(depths[counts], classes, shortcut=shortcut, **options)
    else:
        block = resnet.Bottleneck if "layer1.0.conv3.weight" in state else resnet.BasicBlock
        if (block, counts) not in resnet.CONFIGURATIONS.values():
            raise ValueError(f"a ResNet with {counts} blocks of {block.__name__}, expected one of ResNet-18 ... 152")
        stem = "imagenet" if first[2:] == (7, 7) else "cifar"
        # Only residual networks have projections where a stage begins.
        shortcut = "layer2.0.downsample.0.weight" in state
        model = ResNet(block, counts, classes, stem, shortcut, **options)
    model.load_state_dict(state)
    return model


def depth_of(model: nn.Module) -> int:
    """The number of layers with weights, without the shortcuts' projections: 101 for ResNet-101."""
    layers = (name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return sum("downsample" not in name for name in layers)
