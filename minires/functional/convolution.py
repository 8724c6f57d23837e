"""Two-dimensional convolution: checks and bookkeeping here, the array work in reference.py, or in a backend.

Reading order: after loss.py. Next: normalization.py.
"""

from __future__ import annotations

from minires import kernels
from minires.device import Array
from minires.functional.arithmetic import check_floating
from minires.reference import Geometry, Pair, output_size, pair
from minires.tensor import Tensor


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Slide `weight` over the image: y[n,i,j,o] = sum over u,v,c of x[n, i*s+u*d-p, j*s+v*d-p, c] weight[u,v,c,o].

    x       (N, H, W, C), channels last
    weight  (kh, kw, C/groups, O); groups split the input and output channels into equal, independent parts
    bias    (O,) or None
    returns (N, Ho, Wo, O) with Ho = (H + 2p - d(kh-1) - 1) // s + 1

    stride, padding and dilation are numbers or (vertical, horizontal) pairs. Raises `ValueError` for shapes that do
    not fit, with a hint for an input in PyTorch's (N, C, H, W) order; `TypeError` for integers.
    """
    check_floating("conv2d", x)
    _, stride, padding, dilation = check_conv2d(
        x.shape, weight.shape, None if bias is None else bias.shape, stride, padding, dilation, groups
    )
    backend = kernels.of(x.data, weight.data)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = backend.conv2d(x.data, weight.data, None if bias is None else bias.data, **options)

    def backward(dy: Array) -> tuple[Array | None, ...]:
        dx, dweight = backend.conv2d_backward(
            dy, x.data, weight.data, need_dx=x.requires_grad, need_dweight=weight.requires_grad, **options
        )
        return (dx, dweight) if bias is None else (dx, dweight, backend.column_sum(dy))

    return Tensor.from_op(y, (x, weight) if bias is None else (x, weight, bias), backward)


def check_conv2d(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Geometry:
    """The convolution's numbers as pairs, for arrays of these shapes; raises the `ValueError` of conv2d."""
    if len(x) != 4 or len(weight) != 4:
        raise ValueError(
            f"conv2d: input has shape {x} and the weight {weight}, expected (N,H,W,C) and (kh,kw,C/groups,O)"
        )
    geometry = Geometry(
        weight[:2], pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1)
    )
    channels, outputs = weight[2] * groups, weight[3]
    if groups < 1 or outputs % groups:
        raise ValueError(f"conv2d: groups is {groups}, expected a divisor of the weight's {outputs} output channels")
    if x[3] != channels:
        hint = ""
        if x[1] == channels:
            hint = "; it looks like (N,C,H,W): minires keeps channels last, use x.transpose(0, 2, 3, 1)"
        raise ValueError(
            f"conv2d: input has {x[3]} channels (N,H,W,C)=({','.join(map(str, x))}), "
            f"the weight expects {channels}{hint}"
        )
    if bias is not None and bias != (outputs,):
        raise ValueError(f"conv2d: bias has shape {bias}, expected ({outputs},)")
    if 0 in output_size(x, *geometry):
        raise ValueError(
            f"conv2d: a {weight[0]}x{weight[1]} kernel with dilation {geometry.dilation} does not fit into the "
            f"input {x[1]}x{x[2]} padded by {geometry.padding}"
        )
    return geometry
