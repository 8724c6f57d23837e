"""Initial weights, drawn from an explicit generator on the host: both devices start alike.

All functions fill a Parameter in place and return it.

Reading order: after module.py. Next: layers.py.
"""

from __future__ import annotations

import math

import numpy as np

from minires.device import default_generator, module_of
from minires.nn.module import Parameter


def fans(parameter: Parameter) -> tuple[int, int]:
    """(fan_in, fan_out): the number of inputs of one output, and of outputs of one input.

    A linear weight (C, O) has C and O; a convolution (kh, kw, C, O) has kh*kw*C and kh*kw*O.
    """
    if parameter.ndim < 2:
        raise ValueError(f"fans: a parameter of shape {parameter.shape} has none, expected (C,O) or (kh,kw,C,O)")
    *window, inputs, outputs = parameter.shape
    return math.prod(window) * inputs, math.prod(window) * outputs


def kaiming_normal_(
    parameter: Parameter, mode: str = "fan_in", generator: np.random.Generator | None = None
) -> Parameter:
    """Normal with variance 2 / fan: a ReLU layer then keeps the variance of activations (mode "fan_in") or of
    gradients (mode "fan_out"). Source: He et al. 2015 (arXiv 1502.01852), equations 10 and 14."""
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming_normal_: mode is {mode!r}, expected 'fan_in' or 'fan_out'")
    fan = fans(parameter)[mode == "fan_out"]
    return _fill(parameter, _draw(generator).standard_normal(parameter.shape) * math.sqrt(2 / fan))


def uniform_(parameter: Parameter, bound: float, generator: np.random.Generator | None = None) -> Parameter:
    """Uniform in [-bound, bound]. With bound 1/sqrt(fan_in) it is PyTorch's default for Linear and Conv2d."""
    return _fill(parameter, _draw(generator).uniform(-bound, bound, parameter.shape))


def constant_(parameter: Parameter, value: float) -> Parameter:
    """Every element set to `value`."""
    parameter.data[...] = value
    return parameter


def _draw(generator: np.random.Generator | None) -> np.random.Generator:
    return default_generator() if generator is None else generator


def _fill(parameter: Parameter, values: np.ndarray) -> Parameter:
    parameter.data[...] = module_of(parameter.data).asarray(values, dtype=parameter.dtype)
    return parameter
