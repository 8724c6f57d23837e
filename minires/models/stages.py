"""The architecture table of a ResNet, as He et al. 2015 have it in table 1: stage, layers, output size, blocks.

Reading order: any time after resnet_cifar.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import nn
from minires.models.resnet import Block, ResNet
from minires.models.resnet_cifar import CifarResNet
from minires.nn.summary import Table
from minires.tensor import Tensor, no_grad


def stages(model: ResNet | CifarResNet, input_shape: tuple[int, int, int] | None = None) -> Table:
    """The stages of `model`, which one image of zeros, (H, W, C) = input_shape, goes through; default: the model's own.

    Raises `TypeError` for a model that is no ResNet of this package.
    """
    if not isinstance(model, (ResNet, CifarResNet)):
        raise TypeError(f"stages: got a {type(model).__name__}, expected a ResNet or a CifarResNet")
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple, output: Any) -> None:
        shapes[module] = output.shape[1:]

    device = next(model.parameters()).device
    with no_grad(), model.evaluating(), nn.observe(note):
        model(Tensor(np.zeros((1, *(input_shape or model.input_shape)), np.float32)).to(device))

    conv, pool = model.conv1, getattr(model, "maxpool", None)
    text = f"{conv.out_channels} filters, batch norm, ReLU"
    if isinstance(pool, nn.MaxPool2d):
        text += f", then {_kernel(pool)} max pooling, stride {pool.stride}"
    stride = f", stride {conv.stride}" if conv.stride != 1 else ""
    rows = [
        ("conv1", f"{_kernel(conv)} convolution{stride}", shapes[conv], "1", _count(conv) + _count(model.bn1), text)
    ]
    counts = ["1"]  # of layers with weights
    inputs = conv.out_channels
    for number in range(1, 5):
        blocks = getattr(model, f"layer{number}", None)
        if blocks is None:
            break
        convolutions = [layer for layer, _ in blocks[0].layers()]
        kind = {2: "basic", 3: "bottleneck"}[len(convolutions)]
        *size, outputs = shapes[blocks]
        text = f"{inputs} channels in, {outputs} out"
        strides = [layer.stride for layer in convolutions if layer.stride != 1]
        if strides:
            text += f"; the first block has stride {strides[0]}"
        layers = f"{'' if blocks[0].shortcut else 'plain '}{kind} block ({', '.join(map(_kernel, convolutions))})"
        rows.append((f"conv{number + 1}_x", layers, shapes[blocks], str(len(blocks)), _count(blocks), text))
        counts.append(f"{len(blocks)}x{len(convolutions)}")
        inputs = outputs
    rows.append(
        ("global pool", "average pooling", (1, 1, inputs), "-", 0, f"the mean of {size[0]}x{size[1]} positions")
    )
    fc = model.fc
    rows.append(("fc", "fully connected", (1, 1, shapes[fc][0]), "1", _count(fc), f"logits of {shapes[fc][0]} classes"))
    depth = 2 + sum(len(block.layers()) for block in model.modules() if isinstance(block, Block))
    head = ("stage", "layers", "output", "blocks", "parameters", "description")
    total = f"{' + '.join([*counts, '1'])} = {depth} layers with weights, {_count(model):,} parameters"
    texts = tuple(
        (name, layers, "x".join(map(str, shape)), blocks, f"{parameters:,}" if parameters else "", text)
        for name, layers, shape, blocks, parameters, text in rows
    )
    return Table(head, texts, "lllrrl", total)


def _count(module: nn.Module) -> int:
    return sum(parameter.size for parameter in module.parameters())


def _kernel(layer: nn.Conv2d | nn.MaxPool2d) -> str:
    size = layer.kernel_size
    return "{}x{}".format(*(size if isinstance(size, tuple) else (size, size)))
