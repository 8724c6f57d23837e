"""The networks of minires.models in PyTorch, under the same names: for comparisons only (benchmark.py, the tests).

minires itself never needs PyTorch.
"""

from __future__ import annotations

import torch


class Block(torch.nn.Module):
    """A residual block under torchvision's names, written from the paper: basic or bottleneck, option A or B."""

    def __init__(self, inputs: int, width: int, stride: int, kind: str):
        super().__init__()
        self.kind, outputs = kind, width * (4 if kind == "bottleneck" else 1)
        sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if kind == "bottleneck":
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        for i, (a, b, k, s) in enumerate(sizes, start=1):
            setattr(self, f"conv{i}", torch.nn.Conv2d(a, b, k, s, padding=k // 2, bias=False))
            setattr(self, f"bn{i}", torch.nn.BatchNorm2d(b))
        self.convolutions, self.stride, self.grow = len(sizes), stride, outputs - inputs
        if kind != "option_a" and (stride != 1 or self.grow):
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = x
        for i in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu_(y) if i < self.convolutions else y  # in place, as torchvision does
        if self.kind == "option_a":
            x = x[:, :, :: self.stride, :: self.stride]
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
        elif hasattr(self, "downsample"):
            x = self.downsample(x)
        return torch.relu_(y.add_(x))


class TorchResNet(torch.nn.Module):
    """The networks of minires.models, in PyTorch."""

    def __init__(self, kind: str, counts: tuple[int, ...], widths: tuple[int, ...], stem: str, num_classes: int):
        super().__init__()
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = torch.nn.Conv2d(3, widths[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(widths[0])
        self.pool = torch.nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else torch.nn.Identity()
        channels, self.stages = widths[0], len(counts)
        for i, (count, width) in enumerate(zip(counts, widths)):
            blocks = []
            for j in range(count):
                blocks.append(Block(channels, width, 2 if i and not j else 1, kind))
                channels = width * (4 if kind == "bottleneck" else 1)
            setattr(self, f"layer{i + 1}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.pool(torch.relu_(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


WIDE = (64, 128, 256, 512)
NETWORKS = {  # depth: kind, blocks per stage, widths
    18: ("basic", (2, 2, 2, 2), WIDE),
    34: ("basic", (3, 4, 6, 3), WIDE),
    50: ("bottleneck", (3, 4, 6, 3), WIDE),
    101: ("bottleneck", (3, 4, 23, 3), WIDE),
    152: ("bottleneck", (3, 8, 36, 3), WIDE),
    **{6 * n + 2: ("option_a", (n, n, n), (16, 32, 64)) for n in (3, 5, 7, 9, 18, 200)},
}


def build(depth: int, stem: str | None = None, num_classes: int = 10) -> TorchResNet:
    """The twin of `minires.models.build(depth, num_classes, stem)`."""
    kind, counts, widths = NETWORKS[depth]
    return TorchResNet(kind, counts, widths, stem or "cifar", num_classes)
