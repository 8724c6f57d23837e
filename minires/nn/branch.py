"""The residual branch: what every block of a ResNet computes beside its shortcut.

Reading order: after layers.py. Next: models/resnet.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from minires import kernels
from minires.functional.branch import residual_branch
from minires.nn.layers import BatchNorm2d, Conv2d
from minires.nn.module import Module
from minires.tensor import Tensor, is_grad_enabled


def branch(
    x: Tensor, layers: Sequence[tuple[Conv2d, BatchNorm2d]], residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """Convolution, batch norm and ReLU for each of `layers`, `residual` being added before the last ReLU.

    The loop at the end is the definition. Where the kernels can compute the whole branch as one operation, that is
    called instead, with the same result: in training, and in inference under no_grad, while nobody observes the layers.
    """
    convolutions, norms = zip(*layers)
    training = norms[0].training
    if (
        kernels.fuses_branches(x.data)
        and not Module._observers
        and training == is_grad_enabled()
        and all(norm.training == training for norm in norms)
        and all(type(conv) is Conv2d and conv.bias is None and conv.groups == 1 for conv in convolutions)
        and all(type(norm) is BatchNorm2d for norm in norms)
    ):
        for norm in norms:
            norm.num_batches_tracked += training
        return residual_branch(x, layers, residual, relu, training)

    *inner, (last_conv, last_norm) = layers
    for conv, norm in inner:
        x = norm(conv(x), relu=True)
    return last_norm(last_conv(x), residual=residual, relu=relu)
