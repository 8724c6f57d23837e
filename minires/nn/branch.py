"""The residual branch: F(x) and the shortcut's addition, what every block of a ResNet computes.

Reading order: after layers.py. Next: models/resnet.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import minires.functional as F
from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.functional.convolution import check_conv2d
from minires.functional.normalization import check_batch_norm
from minires.nn.layers import BatchNorm2d, Conv2d, FoldedBatchNorm2d
from minires.nn.module import Module
from minires.reference import Branch, BranchLayer, EvaluateBranch, Geometry, InferenceLayer, output_size
from minires.tensor import Tensor, is_grad_enabled

Layers = Sequence[tuple[Conv2d, BatchNorm2d | FoldedBatchNorm2d]]


def branch(x: Tensor, layers: Layers, shortcut: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(F(x) + shortcut), where F is convolution and batch norm for each of `layers`, with a ReLU between them.

    x (N,H,W,C) -> (N,Ho,Wo,O); the shortcut has the result's shape. Without `relu` the last ReLU is left out. Raises
    `ValueError` for shapes that do not fit, `TypeError` for an input of integers.

    A backend may compute the whole branch as one operation, faster and with the same result (`_fused`).
    """
    fused = _fused(x, layers, shortcut, relu)
    if fused is not None:
        return fused
    *inner, (conv, norm) = layers
    for inner_conv, inner_norm in inner:
        x = F.relu(inner_norm(inner_conv(x)))
    if shortcut is None:
        return F.relu(norm(conv(x))) if relu else norm(conv(x))
    return F.relu(norm(conv(x)) + shortcut) if relu else norm(conv(x)) + shortcut


# The same made fast: for reading later, with cpu/branch.py or cuda/branch.py ---------------------------------


def _fused(x: Tensor, layers: Layers, shortcut: Tensor | None, relu: bool) -> Tensor | None:
    """The branch as one operation, in training and in inference under no_grad; None where it has to be computed layer
    by layer: on a backend without fused branches, while `observe` looks at the layers, for layers that do more."""
    backend = kernels.of(x.data, layers[0][0].weight.data, None if shortcut is None else shortcut.data)
    if backend.branch is None or Module._observers:
        return None
    if is_grad_enabled() and all(_is_training_pair(*pair) for pair in layers):
        return _train(backend.branch, x, layers, shortcut, relu)
    if not is_grad_enabled() and all(_is_inference_pair(*pair) for pair in layers):
        return _infer(backend.evaluate_branch, x, layers, shortcut, relu)
    return None


def _is_training_pair(conv: Module, norm: Module) -> bool:
    plain = type(conv) is Conv2d and conv.groups == 1 and conv.bias is None
    return plain and type(norm) is BatchNorm2d and norm.uses_batch


def _is_inference_pair(conv: Module, norm: Module) -> bool:
    plain = type(conv) is Conv2d and conv.groups == 1
    if plain and type(norm) is BatchNorm2d:
        return conv.bias is None and not norm.uses_batch
    return plain and type(norm) is FoldedBatchNorm2d and conv.bias is not None


def _train(compute: Branch, x: Tensor, layers: Layers, shortcut: Tensor | None, relu: bool) -> Tensor:
    """The branch in training mode, by a backend's `branch`: the checks before it, the tape behind it."""
    described, counts = [], []
    for (conv, norm), geometry, shape in _checked("residual_branch", x, layers, shortcut):
        check_batch_norm(
            shape, norm.weight.shape, norm.bias.shape, norm.running_mean.shape, norm.running_var.shape, training=True
        )
        described.append(BranchLayer(conv.weight.data, geometry, norm.weight.data, norm.bias.data, norm.eps))
        counts.append(math.prod(shape[:3]))  # M
    z, statistics, compute_backward = compute(x.data, described, None if shortcut is None else shortcut.data, relu)
    for (_, norm), (mean, var), count in zip(layers, statistics, counts):
        norm.track(mean, var, count)

    parameters = [tensor for conv, norm in layers for tensor in (conv.weight, norm.weight, norm.bias)]
    other = [] if shortcut is None or shortcut is x else [shortcut]

    def backward(dz: Array) -> list[Array | None]:
        # Written into the optimiser's flat buffer, a gradient need not be copied. A weight that two layers share has
        # two gradients, to be added up by the engine.
        out = [p.free_grad_buffer if parameters.count(p) == 1 else None for p in parameters]
        dx, gradients, dshortcut = compute_backward(dz, x.requires_grad, shortcut is x, out)
        return [dx, *gradients, *([dshortcut] if other else [])]

    return Tensor.from_op(z, [x, *parameters, *other], backward)


def _infer(compute: EvaluateBranch, x: Tensor, layers: Layers, shortcut: Tensor | None, relu: bool) -> Tensor:
    """The branch in inference, by a backend's `evaluate_branch`: batch norm by its running statistics, or folded into
    the convolution."""
    described = []
    for (conv, norm), geometry, _ in _checked("inference_branch", x, layers, shortcut):
        scale, shift = norm.scale_and_shift() or (None, conv.bias.data)
        described.append(InferenceLayer(conv.weight.data, geometry, scale, shift))
    return Tensor(compute(x.data, described, None if shortcut is None else shortcut.data, relu))


def _checked(
    name: str, x: Tensor, layers: Layers, shortcut: Tensor | None
) -> list[tuple[tuple[Module, Module], Geometry, tuple[int, ...]]]:
    """(pair, geometry, shape of the output) of each layer, after the checks that its operations would make."""
    check_floating(name, x)
    checked, shape = [], x.shape
    for conv, norm in layers:
        geometry = check_conv2d(shape, conv.weight.shape, None, conv.stride, conv.padding, conv.dilation, 1)
        shape = (shape[0], *output_size(shape, *geometry), conv.weight.shape[3])
        checked.append(((conv, norm), geometry, shape))
    if shortcut is not None and shortcut.shape != shape:
        raise ValueError(f"{name}: the shortcut has shape {shortcut.shape}, the branch ends in {shape}")
    return checked
