"""A residual branch as one operation: layer by layer, but without the copies that the tape would make.

What the loop in nn/branch.py spells out is launched here in the same order. Three things are saved: gradients of
weights are written straight into the optimiser's flat buffer, where there is one; the shortcut's gradient is added by
the matrix product that makes the branch's, instead of in a pass of its own; and an array is freed as soon as backward
is past it.

Reading order: last of the operations in kernels/cuda. Next: graph.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minires.device import Array
from minires.kernels.cuda import convolution, precision
from minires.kernels.cuda.batch_norm import (
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_statistics,
    scale_and_shift,
)
from minires.kernels.cuda.elementwise import accumulate, convert
from minires.kernels.geometry import Geometry


@dataclass
class Layer:
    """A convolution without bias and the batch norm behind it. Shapes: weight (kh,kw,C,O), the others (O,)."""

    weight: Array
    geometry: Geometry
    bn_weight: Array
    bn_bias: Array
    eps: float
    bn_gradients: tuple[Array | None, Array | None] = (None, None)  # where to put those of weight and bias


@dataclass
class Saved:
    """What a layer leaves for backward: its input, the convolution's output and that output's statistics."""

    x: Array  # (N,H,W,C)
    y: Array  # (N,Ho,Wo,O)
    mean: Array
    var: Array
    with_residual: bool  # whether one was added to its batch norm's output


def branch(x: Array, layers: Sequence[Layer], residual: Array | None, relu: bool) -> tuple[Array, list[Saved]]:
    """[relu](bn(conv(... relu(bn(conv(x))) ...)) [+ residual]) in training mode, and what backward needs."""
    saved = []
    z = convert(x, precision.activation())
    residual = None if residual is None else convert(residual, precision.activation())
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        y = convolution.forward(z, layer.weight, layer.geometry)
        mean, var = batch_norm_statistics(y)
        saved.append(Saved(z, y, mean, var, last and residual is not None))
        z = batch_norm_apply(
            y, mean, var, layer.bn_weight, layer.bn_bias, layer.eps, residual if last else None, relu or not last
        )
    return z, saved


def evaluate_branch(
    x: Array,
    layers: Sequence[tuple[Array, Geometry, Array | None, Array]],
    residual: Array | None,
    relu: bool,
) -> Array:
    """The same for inference, where batch norm is y * scale + shift; (weight, geometry, scale, shift) of each layer."""
    z = convert(x, precision.activation())
    residual = None if residual is None else convert(residual, precision.activation())
    for i, (weight, geometry, scale, shift) in enumerate(layers):
        last = i == len(layers) - 1
        z = convolution.forward(z, weight, geometry)
        scale_and_shift(z, scale, shift, residual if last else None, relu or not last)
    return z


def branch_backward(
    dz: Array,
    x: Array,
    z: Array,
    layers: Sequence[Layer],
    saved: list[Saved],
    relu: bool,
    need_dx: bool,
    add_residual: bool,
    dweights: Sequence[Array | None],
) -> tuple[Array | None, list[tuple], Array | None]:
    """Gradients of `branch`: dx and dresidual (None if not needed), between them (dweight, dbn_weight, dbn_bias) per
    layer.

    `dweights` has for each layer the array to put its weight's gradient into, or None for a new one.
    With `add_residual` the residual was x itself, and its gradient is added to dx. `saved` is emptied on the way.
    """
    dtype = x.dtype.name
    dresidual, gradients, dx = None, [], None
    g = convert(dz, precision.activation())
    while saved:
        last = len(saved) == len(layers)
        layer, here = layers[len(saved) - 1], saved.pop()
        # Only where a shortcut was added does the ReLU's mask have to be read off its output, z.
        bias = None if here.with_residual else layer.bn_bias
        dy, dbn_weight, dbn_bias, masked = batch_norm_backward(
            g, here.y, z if last else None, here.mean, here.var, layer.bn_weight, layer.eps, True, relu or not last,
            need_dresidual=here.with_residual, bias=bias, out=layer.bn_gradients,
        )  # fmt: skip
        dresidual = masked if last else dresidual
        here.y = g = masked = None  # free them
        dweight = convolution.weight_gradient(dy, here.x, layer.weight.shape, layer.geometry, out=dweights[len(saved)])
        gradients.append((dweight, dbn_weight, dbn_bias))
        if not saved and not need_dx:
            break
        # The shortcut's gradient may be written over, and added to, if no one else holds it: with a ReLU it was made
        # here.
        add_to = dresidual if not saved and add_residual and relu else None
        g = convolution.input_gradient(dy, here.x.shape, layer.weight, layer.geometry, add_to)
        if not saved:
            if add_residual and add_to is None:
                accumulate(g, dresidual)
            dx = convert(g, dtype)
    return dx, gradients[::-1], dresidual
