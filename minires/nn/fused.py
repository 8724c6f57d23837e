"""The residual branch as one operation, where a backend offers that: the same result as nn/branch.py, faster.

One operation instead of many lets a backend keep data in the cache between the layers, and never store what lies
between them. The classes say what this file and a backend give each other. cpu/branch.py and cuda/branch.py are the two
implementations.

Reading order: when cpu/branch.py or cuda/branch.py is read; not needed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeGuard

from minires import kernels
from minires.device import Array
from minires.functional.convolution import check_conv2d
from minires.functional.normalization import check_batch_norm
from minires.nn.advice import arises_in
from minires.nn.layers import BatchNorm2d, Conv2d, FoldedBatchNorm2d, Layers
from minires.nn.module import Module
from minires.reference import Geometry, Running, output_size
from minires.tensor import Tensor, is_grad_enabled

TrainingLayers = Sequence[tuple[Conv2d, BatchNorm2d]]  # that a fused branch can train


class BranchLayer(NamedTuple):
    """A convolution without bias and the batch norm behind it. Shapes: weight (kh,kw,C,O), the others (O,)."""

    weight: Array
    geometry: Geometry
    bn_weight: Array
    bn_bias: Array
    eps: float
    running: Running | None = None  # statistics that the branch moves, as reference.batch_norm_statistics does


class InferenceLayer(NamedTuple):
    """A convolution and the batch norm behind it, in evaluation."""

    weight: Array
    geometry: Geometry
    norm: BatchNorm2d | None  # None where it is folded into the weight and the bias
    bias: Array  # (O,), or None where there is a norm


class BranchBackward(Protocol):
    """The gradients of a branch, from dz (N,Ho,Wo,O)."""

    def __call__(
        self, dz: Array, need_dx: bool, shortcut_is_x: bool, out: Sequence[Array | None]
    ) -> tuple[Array | None, list[Array], Array | None]:
        """dx; dweight, dbn_weight and dbn_bias of each layer, in one list; the shortcut's gradient.

        dx is None unless needed. If the shortcut is x, dx includes the shortcut's gradient, and the third result is
        None.
        `out` has for each gradient in the list an array to put the gradient into, or None for a new one.
        """
        ...


class Branch(Protocol):
    """[relu](bn(conv(... relu(bn(conv(x))) ...)) [+ shortcut]) in training mode, with a ReLU between any two layers."""

    def __call__(
        self, x: Array, layers: Sequence[BranchLayer], shortcut: Array | None, relu: bool
    ) -> tuple[Array, BranchBackward]:
        """z (N,Ho,Wo,O), and the function of the gradients."""
        ...


class EvaluateBranch(Protocol):
    """The same for inference."""

    def __call__(self, x: Array, layers: Sequence[InferenceLayer], shortcut: Array | None, relu: bool) -> Array:
        """z (N,Ho,Wo,O)."""
        ...


def fused_branch(x: Tensor, layers: Layers, shortcut: Tensor | None, relu: bool) -> Tensor | None:
    """nn.branch as one operation: in training mode, and in inference under no_grad.

    None while `observe` looks at the layers, for a shortcut of a dtype that the backend does not take, and for other
    layers: with groups, of subclasses, in training with a bias or a frozen batch norm.
    """
    backend = kernels.of(x.data, layers[0][0].weight.data, None if shortcut is None else shortcut.data)
    if Module._observers or (shortcut is not None and kernels.of(shortcut.data) is not backend):
        return None
    if is_grad_enabled() and _are_for_training(layers):
        return _train(backend.branch, x, layers, shortcut, relu)
    if not is_grad_enabled() and all(_is_inference_pair(*pair) for pair in layers):
        return _infer(backend.evaluate_branch, x, layers, shortcut, relu)
    return None


def _are_for_training(layers: Layers) -> TypeGuard[TrainingLayers]:
    return all(
        type(conv) is Conv2d
        and conv.groups == 1
        and conv.bias is None
        and type(norm) is BatchNorm2d
        and norm.uses_batch
        for conv, norm in layers
    )


def _is_inference_pair(conv: Conv2d, norm: BatchNorm2d | FoldedBatchNorm2d) -> bool:
    plain = type(conv) is Conv2d and conv.groups == 1
    if plain and type(norm) is BatchNorm2d:
        return conv.bias is None and not norm.uses_batch
    return plain and type(norm) is FoldedBatchNorm2d and conv.bias is not None


def _train(compute: Branch, x: Tensor, layers: TrainingLayers, shortcut: Tensor | None, relu: bool) -> Tensor:
    """The branch in training mode, by a backend's `branch`: the checks before it, the tape behind it."""
    described = []
    for (conv, norm), (geometry, shape) in zip(layers, _checked(x, layers, shortcut)):
        vectors = (norm.weight.shape, norm.bias.shape, norm.running_mean.shape, norm.running_var.shape)
        try:
            check_batch_norm(shape, *vectors, training=True)
        except ValueError as error:
            arises_in(norm, error)
            raise
        described.append(
            BranchLayer(conv.weight.data, geometry, norm.weight.data, norm.bias.data, norm.eps, norm.running)
        )
    z, compute_backward = compute(x.data, described, None if shortcut is None else shortcut.data, relu)

    parameters = [tensor for conv, norm in layers for tensor in (conv.weight, norm.weight, norm.bias)]
    others = [x] if shortcut is None or shortcut is x else [x, shortcut]
    # A weight that two layers share has two gradients, to be added up by the engine.
    alone = [sum(parameter is other for other in (*parameters, *others)) == 1 for parameter in parameters]
    # backward sees these, and not the tensors: their arrays would stay alive.
    need_dx, shortcut_is_x, count = x.requires_grad, shortcut is x, len(parameters) + len(others)

    def backward(dz: Array) -> list[Array | None]:
        # Written into the optimiser's flat buffer, a gradient need not be copied.
        out = [p.free_grad_buffer if is_alone else None for p, is_alone in zip(parameters, alone)]
        dx, gradients, dshortcut = compute_backward(dz, need_dx, shortcut_is_x, out)
        return [*gradients, dx, dshortcut][:count]

    return Tensor.from_op(z, [*parameters, *others], backward)


def _infer(compute: EvaluateBranch, x: Tensor, layers: Layers, shortcut: Tensor | None, relu: bool) -> Tensor:
    """The branch in inference, by a backend's `evaluate_branch`: batch norm by its running statistics, or folded into
    the convolution."""
    described = []
    for (conv, norm), (geometry, _) in zip(layers, _checked(x, layers, shortcut)):
        described.append(
            InferenceLayer(
                conv.weight.data, geometry, norm if isinstance(norm, BatchNorm2d) else None,
                None if conv.bias is None else conv.bias.data,
            )
        )  # fmt: skip
    return Tensor(compute(x.data, described, None if shortcut is None else shortcut.data, relu))


def _checked(x: Tensor, layers: Layers, shortcut: Tensor | None) -> list[tuple[Geometry, tuple[int, ...]]]:
    """(geometry, shape of the output) of each layer, after the checks that its operations would make."""
    checked, shape = [], x.shape
    for conv, _ in layers:
        try:
            geometry = check_conv2d(shape, conv.weight.shape, None, conv.stride, conv.padding, conv.dilation, 1)
        except ValueError as error:
            arises_in(conv, error)
            raise
        shape = (shape[0], *output_size(shape, *geometry), conv.weight.shape[3])
        checked.append((geometry, shape))
    if shortcut is not None and shortcut.shape != shape:
        raise ValueError(f"nn.branch: the shortcut has shape {shortcut.shape}, the branch ends in {shape}")
    return checked
