"""Batch normalisation.

Reading order: after convolution.py. Next: pooling.py.
"""

from __future__ import annotations

import math

from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.reference import Running
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
    *,
    num_batches_tracked: Array | None = None,
) -> Tensor:
    """Per channel: (x - mean) / sqrt(var + eps) * weight + bias.

    x (..., C), usually (N,H,W,C); weight, bias, running_mean and running_var (C,).

    In training, mean and var are those of this batch (var biased: divided by M, the number of positions N*H*W).
    running_mean and running_var, plain arrays, move towards mean and var in place by `momentum`, running_var with the
    unbiased variance (divided by M-1). num_batches_tracked, an int64 array of shape (), counts the batches.
    In evaluation, mean and var are the running statistics.

    Source: Ioffe and Szegedy 2015, algorithm 1; PyTorch's conventions.
    Raises `ValueError` for shapes that do not fit, and in training for fewer than two values per channel;
    `TypeError` for an input of integers.
    """
    check_floating("batch_norm", x)
    check_batch_norm(x.shape, weight.shape, bias.shape, running_mean.shape, running_var.shape, training)
    backend = kernels.of(x.data, weight.data, running_mean)
    if training:
        running = Running(running_mean, running_var, num_batches_tracked, momentum)
        mean, var = backend.batch_norm_statistics(x.data, running)
    else:
        dtype = weight.dtype if x.dtype.kind != "f" else x.dtype  # bfloat16, not an "f", is for activations only
        mean, var = running_mean.astype(dtype), running_var.astype(dtype)  # copies: training may move the originals
    y = backend.batch_norm_apply(x.data, mean, var, weight.data, bias.data, eps)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        return backend.batch_norm_backward(dy, x.data, mean, var, weight.data, eps, training)

    return Tensor.from_op(y, (x, weight, bias), backward)


def check_batch_norm(
    x: tuple, weight: tuple, bias: tuple, running_mean: tuple, running_var: tuple, training: bool
) -> None:
    """Raise the `ValueError` of batch_norm, for arrays of these shapes."""
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
