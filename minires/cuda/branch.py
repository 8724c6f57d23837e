"""A residual branch as one operation: layer by layer, but without the copies that the tape would make.

What the loop in nn/branch.py spells out is launched here in the same order. Three things are saved:

    gradients of weights      are written straight into the optimiser's flat buffer, where there is one
    the shortcut's gradient   is added by the matrix product that makes the branch's, not in a pass of its own
    memory                    an array is freed as soon as backward is past it

Reading order: last of the operations in cuda. Next: graph.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from minires.cuda import convolution, precision
from minires.cuda.batch_norm import batch_norm_statistics, normalise_add_relu, normalise_add_relu_backward
from minires.cuda.elementwise import accumulate, convert, scale_and_shift
from minires.device import Array
from minires.nn.fused import BranchBackward, BranchLayer, InferenceLayer


@dataclass
class _Saved:
    """What a layer leaves for backward: its input, the convolution's output and that output's statistics."""

    x: Array  # (N,H,W,C)
    y: Array  # (N,Ho,Wo,O)
    mean: Array
    var: Array


def branch(x: Array, layers: Sequence[BranchLayer], shortcut: Array | None, relu: bool) -> tuple[Array, BranchBackward]:
    """See nn.fused.Branch. The backward can be called once: it frees what forward has kept."""
    z = convert(x, precision.activation())
    added = None if shortcut is None else convert(shortcut, precision.activation())
    saved = []
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        y = convolution.forward(z, layer.weight, layer.geometry)
        mean, var = batch_norm_statistics(y, layer.running)
        saved.append(_Saved(z, y, mean, var))
        z = normalise_add_relu(
            y, mean, var, layer.bn_weight, layer.bn_bias, layer.eps, added if last else None, relu or not last
        )
    # A partial, not a closure: that would keep x, the shortcut and y alive too.
    dtypes = x.dtype.name, None if shortcut is None else shortcut.dtype.name
    return z, partial(_backward, z if relu and added is not None else None, layers, saved, dtypes, relu)


def _backward(
    z: Array | None,
    layers: Sequence[BranchLayer],
    saved: list[_Saved],
    dtypes: tuple[str, str | None],
    relu: bool,
    dz: Array,
    need_dx: bool,
    shortcut_is_x: bool,
    out: Sequence[Array | None],
) -> tuple[Array | None, list[Array], Array | None]:
    """See nn.fused.BranchBackward.

    saved   what each layer has kept; it is emptied on the way
    dtypes  of x, and of the shortcut if there was one
    """
    x_dtype, shortcut_dtype = dtypes
    with_shortcut = shortcut_dtype is not None
    gradients: list[Array] = []
    dshortcut = None
    g = convert(dz, precision.activation())
    for i, layer in reversed(list(enumerate(layers))):
        last, here = i == len(layers) - 1, saved.pop()
        with_relu, add_shortcut = relu or not last, with_shortcut and last
        # The ReLU's mask is read off its output, z, only where a shortcut was added. Elsewhere it is computed again.
        dy, dbn_weight, dbn_bias, masked = normalise_add_relu_backward(
            g, here.y, here.mean, here.var, layer.bn_weight, layer.eps, True,
            z=z if with_relu and add_shortcut else None, bias=layer.bn_bias if with_relu and not add_shortcut else None,
            need_dshortcut=add_shortcut, out=(out[3 * i + 1], out[3 * i + 2]),
        )  # fmt: skip
        dshortcut = masked if last else dshortcut
        here.y = g = masked = None  # free them
        dweight = convolution.weight_gradient(dy, here.x, layer.weight.shape, layer.geometry, out=out[3 * i])
        gradients = [dweight, dbn_weight, dbn_bias, *gradients]
        if i > 0 or need_dx:
            # Behind a ReLU the shortcut's gradient is an array that was made here: no one else holds it, and the
            # product may add to it. Without a ReLU it is dz, which belongs to the caller.
            add_to = dshortcut if i == 0 and shortcut_is_x and relu else None
            g = convolution.input_gradient(dy, here.x.shape, layer.weight, layer.geometry, add_to)
            if i == 0 and shortcut_is_x and not relu:
                accumulate(g, dshortcut)
    dx = convert(g, x_dtype) if need_dx else None
    dshortcut = convert(dshortcut, shortcut_dtype) if with_shortcut and not shortcut_is_x else None
    return dx, gradients, dshortcut


def evaluate_branch(x: Array, layers: Sequence[InferenceLayer], shortcut: Array | None, relu: bool) -> Array:
    """See nn.fused.EvaluateBranch."""
    z = convert(x, precision.activation())
    shortcut = None if shortcut is None else convert(shortcut, precision.activation())
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        z, norm = convolution.forward(z, layer.weight, layer.geometry), layer.norm
        added, with_relu = shortcut if last else None, relu or not last
        if norm is None:
            scale_and_shift(z, None, layer.bias, added, with_relu)
        else:  # in place as well; the kernel makes the scale of each channel itself
            normalise_add_relu(
                z, norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data, norm.eps, added, with_relu,
                in_place=True,
            )  # fmt: skip
    return z
