"""The floors: counted by hand for a small network, and of the size that is known for the large ones."""

from __future__ import annotations

import numpy as np
import pytest

import minires.functional as F
from examples.measure import roofline
from examples.measure.roofline import Gpu, layers, step_cost
from minires import models, nn

ONE = Gpu("one byte and one operation a second", 1.0, {"fp32": 1.0, "bf16": 1.0})
FAST_MEMORY = Gpu("no time for memory", 1e30, {"fp32": 1.0})
FAST_ARITHMETIC = Gpu("no time for arithmetic", 1.0, {"fp32": 1e30, "bf16": 1e30})


class Two(nn.Module):
    """A stem, 3 -> 2 channels, 3x3; and a 1x1 convolution, 2 -> 4."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def test_by_hand():
    """Batch 5 of 8x8 images: 80 positions after the stem."""
    cost = step_cost(Two(), 8, 5, "fp32", ONE, columns=True)
    first, second = 2 * 80 * 27 * 2, 2 * 80 * 2 * 4  # operations of one product
    assert cost.operations == 2 * first + 3 * second  # nobody asks for the gradient of the images
    columns, y1, w1 = 80 * 27 * 4, 80 * 2 * 4, 27 * 2 * 4
    x2, y2, w2 = 80 * 2 * 4, 80 * 4 * 4, 2 * 4 * 4
    assert cost.product_bytes == 2 * (columns + y1 + w1) + 3 * (x2 + y2 + w2)
    assert cost.column_bytes == 2 * (columns + 5 * 64 * 3 * 4)
    assert cost.batch_norm_bytes == 8 * y1 + 11 * y2  # conv2 without a conv3 is taken for the end of a block
    assert cost.optimizer_bytes == 5 * 4 * (54 + 4 + 8 + 8)


def test_the_slower_of_the_two_needs_counts():
    model = Two()
    assert step_cost(model, 8, 5, "fp32", FAST_MEMORY, columns=True).seconds == pytest.approx(
        step_cost(model, 8, 5, "fp32", ONE, columns=True).operations
    )
    cost = step_cost(model, 8, 5, "fp32", FAST_ARITHMETIC, columns=True)
    moved = cost.product_bytes + cost.column_bytes + cost.batch_norm_bytes + cost.optimizer_bytes
    assert cost.seconds == pytest.approx(moved)


def test_bf16_halves_what_activations_move_and_nothing_else():
    model = Two()
    full, half = (step_cost(model, 8, 5, p, ONE, columns=False) for p in ("fp32", "bf16"))
    assert half.batch_norm_bytes == full.batch_norm_bytes / 2
    assert half.product_bytes == full.product_bytes / 2
    assert half.optimizer_bytes == full.optimizer_bytes
    assert half.operations == full.operations
    assert full.column_bytes == 0


def test_the_layers_of_resnet101():
    found = layers(models.resnet101(10, "cifar"), 32)
    assert len(found) == 104
    assert sum(layer.is_product for layer in found) == 67  # of 70 of 1x1, three have stride 2
    macs = sum(np.prod(layer.out) * layer.k * layer.outputs for layer in found)
    assert macs == pytest.approx(2.5098e9, rel=1e-3)  # --dry-run's figure, but for the classifier


def test_the_figures_of_the_design():
    """For ResNet-101, batch 512: 7.7 TFLOP, some 98 GB of products and 46 of columns (within 15 %); and of batch norm
    less than the 114 GB that were estimated once: y is not read where there is no shortcut."""
    cost = step_cost(models.resnet101(10, "cifar"), 32, 512, "fp32", roofline.H200, columns=True)
    assert cost.operations == pytest.approx(7.7e12, rel=0.01)
    for value, expected in ((cost.product_bytes, 98e9), (cost.column_bytes, 46e9)):
        assert value == pytest.approx(expected, rel=0.15)
    assert 95e9 < cost.batch_norm_bytes < 105e9


def test_the_data_sheets():
    """An H100 SXM and an H200 compute alike; their memories differ."""
    assert (roofline.H100.bandwidth, roofline.H200.bandwidth) == (3.35e12, 4.8e12)
    assert roofline.H100.peak == roofline.H200.peak
    assert roofline.gpu_named("NVIDIA H100 80GB HBM3") is roofline.H100
    assert roofline.gpu_named("NVIDIA H200") is roofline.H200
