"""Layers: state around the functional operations.

Reading order: module.py, init.py, layers.py.
"""

from minires.nn import init
from minires.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minires.nn.module import Module, Parameter, observe

__all__ = [
    "AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout", "Flatten", "GlobalAvgPool2d", "Identity", "Linear", "MaxPool2d",
    "Module", "Parameter", "ReLU", "Sequential", "init", "observe",
]  # fmt: skip
