"""Layers: state around the functional operations.

Reading order: module.py, init.py, layers.py, branch.py; fused.py with a backend; more.py any time. Next: models/.
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
    ModuleList,
    ReLU,
    Sequential,
)
from minires.nn.module import Module, Parameter, observe
from minires.nn.more import AdaptiveAvgPool2d, CrossEntropyLoss, MSELoss, Sigmoid, Tanh, Upsample, freeze_batch_norm

__all__ = [
    "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm2d", "Conv2d", "CrossEntropyLoss", "Dropout", "Flatten",
    "FoldedBatchNorm2d", "GlobalAvgPool2d", "Identity", "Linear", "MSELoss", "MaxPool2d", "Module", "ModuleList",
    "Parameter", "ReLU", "Sequential", "Sigmoid", "Tanh", "Upsample", "branch", "freeze_batch_norm", "init", "observe",
]  # fmt: skip
