"""Batch normalisation, with the residual addition and the ReLU that follow it in a ResNet.

Reading order: after kernels/reference.py. Next: pooling.py.
"""

from __future__ import annotations

import math

from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.tensor import Tensor


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Per channel: (x - mean) / sqrt(var + eps) * weight + bias, then `+ residual`, then ReLU, if asked for.

    x (..., C), usually (N,H,W,C); weight, bias, running_mean and running_var (C,); residual like x.

    In training, mean and var are those of this batch (var biased: divided by M, the number of positions N*H*W),
    and running_mean and running_var, plain arrays, move towards them in place by `momentum`, running_var with the
    unbiased variance (divided by M-1). In evaluation the running statistics are used as they stand.
    Taking the residual and the ReLU along gives the numbers of `relu(batch_norm(x) + residual)` and lets a fast
    kernel do in one pass over memory what would be three.

    Source: Ioffe and Szegedy 2015, algorithm 1; PyTorch's conventions.
    Raises `ValueError` for shapes that do not fit, and in training for fewer than two values per channel;
    `TypeError` for an input of integers.
    """
    check_floating("batch_norm", x)
    check_batch_norm(x.shape, weight.shape, bias.shape, running_mean.shape, running_var.shape, training)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"batch_norm: residual has shape {residual.shape}, expected the input's {x.shape}")
    room = kernels.of(x.data, weight.data, running_mean)
    if training:
        mean, var = room.batch_norm_statistics(x.data)
        update_running_statistics(running_mean, running_var, mean, var, x.size // x.shape[-1], momentum)
    else:
        dtype = weight.dtype if x.dtype.kind != "f" else x.dtype  # bfloat16, not an "f", is for activations only
        mean, var = running_mean.astype(dtype), running_var.astype(dtype)  # copies: training may move the originals
    y = room.batch_norm_apply(
        x.data, mean, var, weight.data, bias.data, eps, None if residual is None else residual.data, relu
    )

    parents = (x, weight, bias) if residual is None else (x, weight, bias, residual)

    def backward(dy: Array) -> tuple[Array | None, ...]:
        gradients = room.batch_norm_backward(
            dy, x.data, y, mean, var, weight.data, eps, training, relu, need_dresidual=residual is not None
        )
        return gradients[: len(parents)]  # dx, dweight, dbias and, with a residual, dresidual

    return Tensor.from_op(y, parents, backward)


def update_running_statistics(
    running_mean: Array, running_var: Array, mean: Array, var: Array, count: int, momentum: float
) -> None:
    """Move both in place towards this batch's statistics; `var` is biased, the running one is not."""
    room = kernels.for_light_work(mean)
    room.update_running_statistics(running_mean, running_var, mean, var, count, momentum)


def check_batch_norm(
    x: tuple, weight: tuple, bias: tuple, running_mean: tuple, running_var: tuple, training: bool
) -> None:
    """The `ValueError` that batch_norm promises, for arrays of these shapes."""
    channels = x[-1] if x else None
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, shape in vectors.items():
        if shape != (channels,):
            raise ValueError(f"batch_norm: {name} has shape {shape}, the input {x} expects ({channels},)")
    count = math.prod(x[:-1])  # M
    if training and count < 2:
        raise ValueError(
            f"batch_norm: input {x} has {count} value{'s' * (count != 1)} per channel, training needs at least 2 "
            "(a larger batch or image)"
        )
