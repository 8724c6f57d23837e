"""ResNet-20, 32, 44, 56, 110 and 1202: the paper's networks for 32x32 images.

    stage    layers, each 3x3 with batch norm    output, 32x32 input
    conv1    1 convolution                       32x32x16
    layer1   n blocks of two convolutions        32x32x16
    layer2   n blocks, the first with stride 2   16x16x32
    layer3   n blocks, the first with stride 2   8x8x64
    fc       mean over positions, linear         num_classes

    network       n     parameters, 10 classes
    resnet20      3       269,722
    resnet32      5       464,154
    resnet44      7       658,586
    resnet56      9       853,018
    resnet110    18     1,727,962
    resnet1202  200    19,421,274

The depth is 6n + 2. Where a shortcut changes shape it takes every second pixel and adds channels of zeros
("option A"), so the shortcut has no parameters. The plain network (shortcut=False) has exactly as many parameters.

Source: He et al. 2015, Deep Residual Learning for Image Recognition (arXiv 1512.03385), section 4.2.
Reading order: after resnet.py. Next: optim/optimizer.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import minires.functional as F
from minires import nn
from minires.models import pretrained
from minires.models.pretrained import Weights
from minires.models.resnet import Block, initialise
from minires.nn.layers import Layers
from minires.tensor import Tensor

DEPTHS = (20, 32, 44, 56, 110, 1202)


class CifarBlock(Block):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(
        self, in_channels: int, width: int, stride: int, shortcut: bool, generator: np.random.Generator | None = None
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False, generator=generator)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False, generator=generator)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels, self.shortcut = stride, width - in_channels, shortcut

    def layers(self) -> Layers:
        """3x3, 3x3."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]

    def shortcut_of(self, x: Tensor) -> Tensor:
        """x at every `stride`-th pixel, its channels in the middle of zeros: (N,H/stride,W/stride,width)."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        subsampled = x[:, :: self.stride, :: self.stride]
        return F.pad(subsampled, [(0, 0), (0, 0), (0, 0), (before, self.new_channels - before)])


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of n blocks at 16, 32 and 64 channels, and a linear classifier.

    depth           6n + 2
    shortcut        False makes the plain network of the paper's degradation experiment
    zero_init_last  start every block as the identity, with zero weights in its last batch norm (Goyal et al. 2017)
    in_channels     of the images: 3 for colour, 1 for grey. `input_shape` is their usual (H, W, C)
    """

    layer1: nn.Sequential  # of CifarBlocks
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        shortcut: bool = True,
        zero_init_last: bool = False,
        generator: np.random.Generator | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise ValueError(f"CifarResNet: depth is {depth}, expected 6n + 2: {', '.join(map(str, DEPTHS))}")
        self.input_shape = (32, 32, in_channels)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False, generator=generator)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for i, width in enumerate((16, 32, 64)):
            strides = [1 if i == 0 else 2] + [1] * (n - 1)
            blocks = []
            for stride in strides:
                blocks.append(CifarBlock(channels, width, stride, shortcut, generator))
                channels = width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, num_classes, generator=generator)
        initialise(self, zero_init_last, generator)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs of the stages, {"c2": stride 1, "c3": 2, "c4": 4}."""
        c2 = self.layer1(nn.branch(x, [(self.conv1, self.bn1)]))
        c3 = self.layer2(c2)
        return {"c2": c2, "c3": c3, "c4": self.layer3(c3)}

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,in_channels) -> logits (N,num_classes)."""
        return self.fc(F.global_avg_pool2d(self.features(x)["c4"]))


def resnet20(num_classes: int = 10, weights: Weights = None, **options: Any) -> CifarResNet:
    """ResNet-20; `weights` is the path of a file to start from, `options` are those of `CifarResNet`."""
    return _resnet(20, num_classes, weights, options)


def resnet32(num_classes: int = 10, weights: Weights = None, **options: Any) -> CifarResNet:
    """ResNet-32."""
    return _resnet(32, num_classes, weights, options)


def resnet44(num_classes: int = 10, weights: Weights = None, **options: Any) -> CifarResNet:
    """ResNet-44."""
    return _resnet(44, num_classes, weights, options)


def resnet56(num_classes: int = 10, weights: Weights = None, **options: Any) -> CifarResNet:
    """ResNet-56."""
    return _resnet(56, num_classes, weights, options)


def resnet110(num_classes: int = 10, weights: Weights = None, **options: Any) -> CifarResNet:
    """ResNet-110."""
    return _resnet(110, num_classes, weights, options)


def resnet1202(num_classes: int = 10, weights: Weights = None, **options: Any) -> CifarResNet:
    """ResNet-1202."""
    return _resnet(1202, num_classes, weights, options)


def _resnet(depth: int, num_classes: int, weights: Weights, options: dict) -> CifarResNet:
    return pretrained.with_weights(partial(CifarResNet, depth, num_classes), depth, weights, options)
