"""A residual branch as one operation, for rooms that compute it at one go.

Its meaning is the loop in nn/branch.py: convolution, batch norm and ReLU, layer after layer, with the shortcut
added at the end. One operation instead of many lets the kernels keep data in the cache between the layers and
never store what lies between; kernels/cpu/branch.py tells how.

Reading order: after nn/branch.py; to be skipped at first. Next: kernels/cpu/branch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.functional.convolution import check_conv2d
from minires.functional.normalization import check_batch_norm, update_running_statistics
from minires.kernels.geometry import Geometry, output_size
from minires.tensor import Tensor


def residual_branch(x: Tensor, layers: Sequence[tuple[Any, Any]], residual: Tensor | None, relu: bool) -> Tensor:
    """[relu](bn(conv(... relu(bn(conv(x))) ...)) [+ residual]) in training mode, with a ReLU between any two layers.

    x (N,H,W,C); layers: pairs of a convolution and a batch norm, with the attributes that nn.Conv2d (no bias, one
    group) and nn.BatchNorm2d have; residual (N,Ho,Wo,O). The running statistics move, as in batch_norm.
    Raises `ValueError` for shapes that do not fit, `TypeError` for an input of integers.
    """
    check_floating("residual_branch", x)
    room = kernels.of(x.data, layers[0][0].weight.data, None if residual is None else residual.data)
    described, shape = [], x.shape
    for conv, norm in layers:
        geometry, shape = _check(shape, conv)
        statistics = norm.running_mean.shape, norm.running_var.shape
        check_batch_norm(shape, norm.weight.shape, norm.bias.shape, *statistics, training=True)
        described.append(room.Layer(conv.weight.data, geometry, norm.weight.data, norm.bias.data, norm.eps))
    _check_residual(residual, shape)

    z, saved = room.branch(x.data, described, None if residual is None else residual.data, relu)
    for (_, norm), layer in zip(layers, saved):
        count = layer.y.size // layer.y.shape[3]  # M
        update_running_statistics(norm.running_mean, norm.running_var, layer.mean, layer.var, count, norm.momentum)

    parents = [x, *(tensor for conv, norm in layers for tensor in (conv.weight, norm.weight, norm.bias))]
    parents += [residual] if residual is not None and residual is not x else []

    def backward(dz: Array) -> list[Array | None]:
        # A Parameter has room for its gradient in the optimiser's flat buffer: written there, it need not be copied. A
        # weight that two layers share has two gradients, to be added up by the engine.
        def buffer(parameter: Tensor) -> Array | None:
            return getattr(parameter, "free_grad_buffer", None) if parents.count(parameter) == 1 else None

        buffers = [buffer(conv.weight) for conv, _ in layers]
        for layer, (_, norm) in zip(described, layers):
            layer.bn_gradients = buffer(norm.weight), buffer(norm.bias)  # kernels/cuda uses them
        dx, gradients, dresidual = room.branch_backward(
            dz, x.data, z, described, saved, relu, x.requires_grad, residual is x, buffers
        )
        return [dx, *(gradient for layer in gradients for gradient in layer), dresidual][: len(parents)]

    return Tensor.from_op(z, parents, backward)


def inference_branch(x: Tensor, layers: Sequence[tuple[Any, Any]], residual: Tensor | None, relu: bool) -> Tensor:
    """The same for inference: batch norm by its running statistics, or folded into the convolution; no gradients.

    layers: pairs of a convolution and a norm with `scale_and_shift()`, which gives the two (O,) arrays that batch norm
    amounts to; or None, and the convolution has a bias instead. Raises `ValueError` for shapes that do not fit,
    `TypeError` for an input of integers.
    """
    check_floating("inference_branch", x)
    room = kernels.of(x.data, layers[0][0].weight.data, None if residual is None else residual.data)
    described, shape = [], x.shape
    for conv, norm in layers:
        geometry, shape = _check(shape, conv)
        scale, shift = norm.scale_and_shift() or (None, conv.bias.data)
        described.append((conv.weight.data, geometry, scale, shift))
    _check_residual(residual, shape)
    return Tensor(room.evaluate_branch(x.data, described, None if residual is None else residual.data, relu))


def _check(x: tuple[int, ...], conv: Any) -> tuple[Geometry, tuple[int, ...]]:
    """The convolution's numbers, and the shape of its output."""
    geometry = check_conv2d(x, conv.weight.shape, None, conv.stride, conv.padding, conv.dilation, 1)
    return geometry, (x[0], *output_size(x, *geometry), conv.weight.shape[3])


def _check_residual(residual: Tensor | None, shape: tuple[int, ...]) -> None:
    if residual is not None and residual.shape != shape:
        raise ValueError(f"residual_branch: residual has shape {residual.shape}, the branch ends in {shape}")
