"""Layers for networks of your own, which no ResNet needs, and frozen batch norms, for fine-tuning.

Reading order: any time after layers.py.
"""

from __future__ import annotations

import numpy as np

import minires.functional as F
from minires.device import Array
from minires.nn.layers import BatchNorm2d
from minires.nn.module import M, Module
from minires.reference import Pair, pair
from minires.tensor import Tensor


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.tanh(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.sigmoid(x)


class AdaptiveAvgPool2d(Module):
    """The mean of equal windows, as many as `output_size` says: 1 for the mean over all positions.

    Raises `ValueError` for an image whose height or width `output_size` does not divide.
    """

    def __init__(self, output_size: Pair):
        super().__init__()
        self.output_size = pair("output_size", output_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,*output_size,C)."""
        if x.ndim != 4:
            raise ValueError(f"AdaptiveAvgPool2d: input has shape {x.shape}, expected (N,H,W,C)")
        (h, w), (height, width) = self.output_size, x.shape[1:3]
        if height % h or width % w:
            raise ValueError(f"AdaptiveAvgPool2d: {h}x{w} windows do not divide an image of {height}x{width}")
        return F.avg_pool2d(x, (height // h, width // w))

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.output_size}"


class Upsample(Module):
    """Images enlarged by whole numbers; see `functional.interpolate`."""

    def __init__(self, scale_factor: Pair, mode: str = "nearest"):
        super().__init__()
        pair("scale_factor", scale_factor, 1)
        self.scale_factor, self.mode = scale_factor, mode

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,H*scale,W*scale,C)."""
        return F.interpolate(x, scale_factor=self.scale_factor, mode=self.mode)

    def extra_repr(self) -> str:
        """The settings."""
        return f"scale_factor={self.scale_factor}, mode={self.mode!r}"


class CrossEntropyLoss(Module):
    """`functional.cross_entropy` with its settings."""

    def __init__(self, weight: Array | None = None, ignore_index: int = -100, label_smoothing: float = 0.0):
        super().__init__()
        axes = 0 if weight is None else np.ndim(weight)
        if isinstance(weight, (Tensor, str)) or not hasattr(ignore_index, "__index__") or axes > 1:
            raise TypeError("CrossEntropyLoss: takes its settings; the loss is nn.CrossEntropyLoss()(logits, labels)")
        self.weight, self.ignore_index, self.label_smoothing = weight, ignore_index, label_smoothing

    def forward(self, logits: Tensor, labels: Array) -> Tensor:
        """(N,K), (N,) -> a scalar."""
        return F.cross_entropy(logits, labels, self.label_smoothing, self.weight, self.ignore_index)

    def extra_repr(self) -> str:
        """The settings."""
        return f"weight={self.weight}, ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"


class MSELoss(Module):
    """`functional.mse_loss`: the mean of the squared differences."""

    def forward(self, prediction: Tensor, target: Tensor | Array) -> Tensor:
        """Two of one shape -> a scalar."""
        return F.mse_loss(prediction, target)


def freeze_batch_norm(model: M, frozen: bool = True) -> M:
    """Keep the statistics, weight and bias of every batch norm in `model`, in training too. Returns the model.

    For fine-tuning a pretrained network with batches too small for statistics of their own. frozen=False lets the batch
    norms train again.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.frozen = frozen
            module.requires_grad_(not frozen)
    return model
