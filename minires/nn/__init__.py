"""Layers: state around the functional operations.

Reading order: module.py, init.py, layers.py, branch.py; fused.py with a backend. Next: models/.
"""

from minires.nn import init
from minires.nn.branch import branch
from minires.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    FoldedBatchNorm2d,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    freeze_batch_norm,
)
from minires.nn.module import Module, Parameter, observe

__all__ = [
    "AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout", "Flatten", "FoldedBatchNorm2d", "GlobalAvgPool2d", "Identity",
    "Linear", "MaxPool2d", "Module", "Parameter", "ReLU", "Sequential", "branch", "freeze_batch_norm", "init",
    "observe",
]  # fmt: skip
