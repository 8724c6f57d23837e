"""The residual branch: what every block of a ResNet computes.

Reading order: after layers.py. Next: models/resnet.py.
"""

from __future__ import annotations

import minires.functional as F
from minires import kernels
from minires.functional.arithmetic import check_floating
from minires.nn.advice import arises_in
from minires.nn.fused import fused_branch
from minires.nn.layers import Layers
from minires.tensor import Tensor


def branch(x: Tensor, layers: Layers, shortcut: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(F(x) + shortcut): F is convolution and batch norm for each of `layers`, with a ReLU between any two.

    x (N,H,W,C) -> (N,Ho,Wo,O). The shortcut has the shape of the result; a stem or a projection has none. Without
    `relu` the last ReLU is left out. Raises `ValueError` for shapes that do not fit, `TypeError` for an input of
    integers.

    A backend may compute the whole as one operation, faster and with the same result (nn/fused.py).
    """
    try:
        check_floating("conv2d", x)
    except TypeError as error:
        arises_in(layers[0][0], error)
        raise
    if shortcut is not None:
        check_floating("nn.branch", shortcut)
    if kernels.of(x.data).branch is not None:
        fused = fused_branch(x, layers, shortcut, relu)
        if fused is not None:
            return fused
    *inner, (conv, norm) = layers
    for inner_conv, inner_norm in inner:
        x = F.relu(inner_norm(inner_conv(x)))
    y = norm(conv(x))
    if shortcut is None:
        return F.relu(y) if relu else y
    if shortcut.shape != y.shape:
        raise ValueError(f"nn.branch: the shortcut has shape {shortcut.shape}, the branch ends in {y.shape}")
    return F.relu(y + shortcut) if relu else y + shortcut
