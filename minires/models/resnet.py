"""ResNet-18, 34, 50, 101 and 152, with a stem for 224x224 or for 32x32 images.

    stage    ResNet-101                output at 224x224     output at 32x32
             (all convolutions          stem="imagenet"       stem="cifar"
              with batch norm)
    conv1    7x7, 64, stride 2         112x112x64            32x32x64  (3x3, stride 1)
             3x3 max pool, stride 2     56x56x64             (none)
    layer1   [1x1 64, 3x3 64,           56x56x256            32x32x256
              1x1 256]    x  3
    layer2   [1x1 128, 3x3 128,         28x28x512            16x16x512
              1x1 512]    x  4
    layer3   [1x1 256, 3x3 256,         14x14x1024           8x8x1024
              1x1 1024]   x 23
    layer4   [1x1 512, 3x3 512,         7x7x2048             4x4x2048
              1x1 2048]   x  3
    fc       mean over positions,       num_classes          num_classes
             linear

    network      blocks             x  count       parameters, 1000 classes    10 classes, "cifar" stem
    resnet18     basic (two 3x3)    2, 2, 2, 2            11,689,512            11,173,962
    resnet34     basic              3, 4, 6, 3            21,797,672            21,282,122
    resnet50     bottleneck         3, 4, 6, 3            25,557,032            23,520,842
    resnet101    bottleneck         3, 4, 23, 3           44,549,160            42,512,970
    resnet152    bottleneck         3, 8, 36, 3           60,192,808            58,156,618

The first block of layer2, layer3 and layer4 halves the image, in the 3x3 convolution, as torchvision does ("v1.5"; the
paper strides the 1x1 before it). Names follow torchvision, so that weights go both ways.

Source: He et al. 2015, Deep Residual Learning for Image Recognition (arXiv 1512.03385), table 1.
Reading order: after nn/branch.py. Next: resnet_cifar.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import minires.functional as F
from minires import nn
from minires.models import pretrained
from minires.models.pretrained import Weights
from minires.nn.layers import Layers
from minires.tensor import Tensor

STEMS = ("imagenet", "cifar")


class Block(nn.Module):
    """relu(F(x) + shortcut). A subclass says what F is, by `layers`, and what its shortcut adds, by `shortcut_of`.

    shortcut  False in a plain network, which computes relu(F(x))
    """

    shortcut = True

    def layers(self) -> Layers:
        """The layers of F, a ReLU between any two."""
        raise NotImplementedError

    def shortcut_of(self, x: Tensor) -> Tensor:
        """x, in the shape of F(x)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,H/stride,W/stride,outputs)."""
        return nn.branch(x, self.layers(), self.shortcut_of(x) if self.shortcut else None)


class ProjectionBlock(Block):
    """A block whose shortcut is x, or, where the shape changes, a 1x1 convolution of x: option B of the paper."""

    expansion = 1  # output channels = expansion * width

    def _add_shortcut(
        self, inputs: int, outputs: int, stride: int, shortcut: bool, generator: np.random.Generator | None
    ) -> None:
        self.shortcut, self.downsample = shortcut, None
        if shortcut and (stride != 1 or inputs != outputs):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False, generator=generator), nn.BatchNorm2d(outputs)
            )

    def shortcut_of(self, x: Tensor) -> Tensor:
        """x, or its projection."""
        if self.downsample is None:
            return x
        conv, norm = self.downsample
        return nn.branch(x, [(conv, norm)], relu=False)


class BasicBlock(ProjectionBlock):
    """Two 3x3 convolutions beside a shortcut. `dilation` is that of its input and of its output."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: bool,
        generator: np.random.Generator | None = None,
        dilation: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        d1, d2 = dilation
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=d1, dilation=d1, bias=False, generator=generator)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=d2, dilation=d2, bias=False, generator=generator)
        self.bn2 = nn.BatchNorm2d(width)
        self._add_shortcut(in_channels, width, stride, shortcut, generator)

    def layers(self) -> Layers:
        """3x3, 3x3."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class Bottleneck(ProjectionBlock):
    """1x1 down to `width`, 3x3, 1x1 up to 4 * width, beside a shortcut."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: bool,
        generator: np.random.Generator | None = None,
        dilation: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        outputs, d = width * self.expansion, dilation[0]  # there is one 3x3 convolution to dilate
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False, generator=generator)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=d, dilation=d, bias=False, generator=generator)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False, generator=generator)
        self.bn3 = nn.BatchNorm2d(outputs)
        self._add_shortcut(in_channels, outputs, stride, shortcut, generator)

    def layers(self) -> Layers:
        """1x1, 3x3, 1x1."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


class ResNet(nn.Module):
    """A stem, four stages of blocks, the mean over positions, and a linear classifier.

    block           BasicBlock or Bottleneck
    counts          blocks per stage
    num_classes     outputs of `fc`, which may be replaced: model.fc = nn.Linear(model.fc.in_features, 10)
    stem            "imagenet" (7x7 stride 2, max pool) or "cifar" (3x3 stride 1)
    shortcut        False makes the plain network of the paper's degradation experiment
    zero_init_last  start every block as the identity, with zero weights in its last batch norm (Goyal et al. 2017)
    output_stride   of the features; half or a quarter of the usual 32 (8 with stem "cifar") for segmentation: the last
                    stages dilate their 3x3 convolutions instead of striding, and see as much of the image as before.
                    The weights are the same, whatever the stride (Chen et al. 2017, arXiv 1706.05587, section 3.1)
    in_channels     of the images: 3 for colour, 1 for grey. `input_shape` is their usual (H, W, C)

    Convolutions start as He et al. 2015 (arXiv 1502.01852), fan-out mode, as torchvision does.
    """

    layer1: nn.Sequential  # of blocks
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: Sequence[int],
        num_classes: int = 1000,
        stem: str = "imagenet",
        shortcut: bool = True,
        zero_init_last: bool = False,
        generator: np.random.Generator | None = None,
        output_stride: int | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"ResNet: stem is {stem!r}, expected one of {', '.join(map(repr, STEMS))}")
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False, generator=generator)
            self.bn1 = nn.BatchNorm2d(64)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False, generator=generator)
            self.bn1 = nn.BatchNorm2d(64)
            self.maxpool = nn.Identity()
        size, stride = (224, 4) if stem == "imagenet" else (32, 1)
        self.input_shape = (size, size, in_channels)
        limit = output_stride or 8 * stride
        if limit not in (2 * stride, 4 * stride, 8 * stride):
            raise ValueError(
                f"ResNet: output_stride is {output_stride}, expected {2 * stride}, {4 * stride} or {8 * stride}"
            )
        channels, dilation = 64, 1
        for i, (count, width) in enumerate(zip(counts, (64, 128, 256, 512))):
            before = dilation
            if i > 0 and stride < limit:
                stride, first = 2 * stride, 2
            else:  # instead of a stride, all later 3x3 convolutions are dilated
                dilation, first = dilation * (2 if i > 0 else 1), 1
            blocks = []
            for j in range(count):
                dilations = (before if j == 0 else dilation, dilation)
                blocks.append(block(channels, width, first if j == 0 else 1, shortcut, generator, dilations))
                channels = width * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes, generator=generator)
        initialise(self, zero_init_last, generator)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs of the stages: {"c2": stride 4, "c3": 8, "c4": 16, "c5": 32} (1, 2, 4, 8 with stem "cifar").

        No stride is larger than the network's `output_stride`.
        """
        x = self.maxpool(nn.branch(x, [(self.conv1, self.bn1)]))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return {"c2": c2, "c3": c3, "c4": c4, "c5": self.layer4(c4)}

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,in_channels) -> logits (N,num_classes)."""
        return self.fc(F.global_avg_pool2d(self.features(x)["c5"]))


def initialise(model: nn.Module, zero_init_last: bool, generator: np.random.Generator | None) -> None:
    """Draw the weights of all convolutions anew: normal, He et al. 2015 (arXiv 1502.01852), fan-out mode.

    zero_init_last  zero weights in the last batch norm of every block, which then starts as relu(shortcut)
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, "fan_out", generator)
        elif isinstance(module, Block) and zero_init_last:
            _, last_norm = module.layers()[-1]
            assert isinstance(last_norm, nn.BatchNorm2d)  # not folded away
            nn.init.constant_(last_norm.weight, 0.0)


CONFIGURATIONS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def resnet18(num_classes: int = 1000, stem: str = "imagenet", weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-18; `options` are those of `ResNet`.

    weights  "imagenet" for torchvision's, which are downloaded once, or the path of any file: see pretrained.py
    """
    return _resnet(18, num_classes, stem, weights, options)


def resnet34(num_classes: int = 1000, stem: str = "imagenet", weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-34; see `resnet18`."""
    return _resnet(34, num_classes, stem, weights, options)


def resnet50(num_classes: int = 1000, stem: str = "imagenet", weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-50; see `resnet18`."""
    return _resnet(50, num_classes, stem, weights, options)


def resnet101(num_classes: int = 1000, stem: str = "imagenet", weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-101; see `resnet18`."""
    return _resnet(101, num_classes, stem, weights, options)


def resnet152(num_classes: int = 1000, stem: str = "imagenet", weights: Weights = None, **options: Any) -> ResNet:
    """ResNet-152; see `resnet18`."""
    return _resnet(152, num_classes, stem, weights, options)


def _resnet(depth: int, num_classes: int, stem: str, weights: Weights, options: dict) -> ResNet:
    return pretrained.with_weights(partial(ResNet, *CONFIGURATIONS[depth], num_classes, stem), depth, weights, options)
