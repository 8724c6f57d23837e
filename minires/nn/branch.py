"""The residual branch: what every block of a ResNet computes beside its shortcut.

Reading order: after layers.py. Next: models/resnet.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from minires import kernels
from minires.functional.branch import inference_branch, residual_branch
from minires.nn.layers import BatchNorm2d, Conv2d, FoldedBatchNorm2d
from minires.nn.module import Module
from minires.tensor import Tensor, is_grad_enabled

Layers = Sequence[tuple[Conv2d, BatchNorm2d | FoldedBatchNorm2d]]


def branch(x: Tensor, layers: Layers, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """Convolution, batch norm and ReLU for each of `layers`, `residual` being added before the last ReLU.

    The loop at the end is the definition. Where the kernels can compute the whole branch as one operation, that is
    called instead, with the same result: in training, and in inference under no_grad, while nobody observes the layers.
    """
    if kernels.fuses_branches(x.data) and not Module._observers:
        if is_grad_enabled() and all(_is_training_pair(*pair) for pair in layers):
            y = residual_branch(x, layers, residual, relu)
            for _, norm in layers:
                norm.num_batches_tracked += 1
            return y
        if not is_grad_enabled() and all(_is_inference_pair(*pair) for pair in layers):
            return inference_branch(x, layers, residual, relu)

    *inner, (last_conv, last_norm) = layers
    for conv, norm in inner:
        x = norm(conv(x), relu=True)
    return last_norm(last_conv(x), residual=residual, relu=relu)


def _is_training_pair(conv: Module, norm: Module) -> bool:
    plain = type(conv) is Conv2d and conv.groups == 1 and conv.bias is None
    return plain and type(norm) is BatchNorm2d and norm.uses_batch


def _is_inference_pair(conv: Module, norm: Module) -> bool:
    plain = type(conv) is Conv2d and conv.groups == 1
    if plain and type(norm) is BatchNorm2d:
        return conv.bias is None and not norm.uses_batch
    return plain and type(norm) is FoldedBatchNorm2d and conv.bias is not None
