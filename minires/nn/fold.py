"""Batch norm folded into the convolution before it, for inference.

In evaluation batch norm is y * scale + shift per channel, with scale = weight / sqrt(running_var + eps) and
shift = bias - running_mean * scale. A convolution is linear: conv(x, W) * scale + shift = conv(x, W * scale) + shift.
Folding multiplies the weights by the scale, once, and makes the shift the bias of the convolution.

Reading order: any time after nn/layers.py.
"""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise

from minires import nn
from minires.nn.module import M


def fold(model: M) -> M:
    """A copy of `model` for inference, in evaluation mode, with every batch norm folded into its convolution.

    A batch norm belongs to the convolution directly before the batch norm among a module's attributes (conv1, bn1,
    conv2, bn2, ...). Outputs equal those of `model.eval()` up to rounding. Raises `ValueError` if there is nothing to
    fold, or for a convolution used in several places, which may need different scales.
    """
    folded = copy.deepcopy(model)
    pairs, places = [], Counter()
    for module in dict.fromkeys(folded.modules()):  # a block used in several places is folded once
        children = list(module.named_children())
        places.update(child for _, child in children)
        for (_, conv), (name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                pairs.append((module, name, conv, norm))
    if not pairs:
        raise ValueError(f"fold: {type(model).__name__} has no batch norm right behind a convolution")
    for module, name, conv, norm in pairs:
        if places[conv] > 1:
            raise ValueError(f"fold: the convolution before {name} is used in {places[conv]} places")
        scale, shift = norm.scale_and_shift()  # (O,)
        conv.weight = nn.Parameter(conv.weight.data * scale)  # (kh,kw,C,O) * (O,)
        conv.bias = nn.Parameter(shift if conv.bias is None else conv.bias.data * scale + shift)
        setattr(module, name, nn.FoldedBatchNorm2d())
    return folded.eval()
