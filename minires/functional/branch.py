"""A residual branch as one node on the tape, for rooms that compute it at one go.

Its meaning is the loop in nn/branch.py: convolution, batch norm and ReLU, layer after layer, with the shortcut
added at the end. One operation instead of many lets the kernels keep data in the cache between the layers and
never store what lies between; kernels/cpu/branch.py tells how.

Reading order: after pooling.py; skip it at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minires import kernels
from minires.device import Array
from minires.functional.convolution import check_conv2d
from minires.functional.normalization import check_batch_norm, update_running_statistics
from minires.kernels.geometry import output_size
from minires.tensor import Tensor, is_grad_enabled


def residual_branch(
    x: Tensor, layers: Sequence[tuple[Any, Any]], residual: Tensor | None, relu: bool, training: bool
) -> Tensor:
    """[relu](bn(conv(... relu(bn(conv(x))) ...)) [+ residual]), with a ReLU between any two layers.

    x (N,H,W,C); layers: pairs of a convolution and a batch norm, with the attributes that nn.Conv2d (no bias, one
    group) and nn.BatchNorm2d have; residual (N,Ho,Wo,O).

    In training mode the batch's statistics are used and the running ones move, as in batch_norm; evaluation mode is
    for inference. Raises `ValueError` for shapes that do not fit, `RuntimeError` for a gradient in evaluation mode.
    """
    parents = [x, *(tensor for conv, bn in layers for tensor in (conv.weight, bn.weight, bn.bias))]
    parents += [residual] if residual is not None and residual is not x else []
    if not training and is_grad_enabled() and any(parent.requires_grad for parent in parents):
        raise RuntimeError("residual_branch: evaluation mode is for inference, use it under no_grad()")
    room = kernels.of(x.data)
    described, shape = [], x.shape
    for conv, bn in layers:
        geometry = check_conv2d(shape, conv.weight.shape, None, conv.stride, conv.padding, conv.dilation, 1)
        shape = (shape[0], *output_size(shape, *geometry), conv.weight.shape[3])
        check_batch_norm(
            shape, bn.weight.shape, bn.bias.shape, bn.running_mean.shape, bn.running_var.shape, training
        )  # fmt: skip
        described.append(room.Layer(conv.weight.data, geometry, bn.weight.data, bn.bias.data, bn.eps))
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual_branch: residual has shape {residual.shape}, the branch ends in {shape}")
    residual_data = None if residual is None else residual.data

    if not training:
        statistics = [(bn.running_mean, bn.running_var) for _, bn in layers]
        return Tensor(room.evaluate_branch(x.data, described, statistics, residual_data, relu))

    z, saved = room.branch(x.data, described, residual_data, relu)
    for (_, bn), layer in zip(layers, saved):
        count = layer.y.size // layer.y.shape[3]
        update_running_statistics(bn.running_mean, bn.running_var, layer.mean, layer.var, count, bn.momentum)

    def backward(dz: Array) -> list[Array | None]:
        # A Parameter has room for its gradient in the optimiser's flat buffer: written there, it need not be copied. A
        # weight that two layers share has two gradients, to be added up by the engine.
        weights = [conv.weight for conv, _ in layers]
        buffers = [getattr(w, "free_grad_buffer", None) if weights.count(w) == 1 else None for w in weights]
        dx, gradients, dresidual = room.branch_backward(
            dz, x.data, z, described, saved, relu, x.requires_grad, residual is x, buffers
        )
        flat = [dx, *(gradient for layer in gradients for gradient in layer)]
        return [*flat, dresidual] if len(parents) > len(flat) else flat

    return Tensor.from_op(z, parents, backward)
