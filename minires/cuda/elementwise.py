"""ReLU, conversions and other single passes: elementwise.cu launched.

Reading order: after convolution.py. Next: pooling.cu.
"""

from __future__ import annotations

from minires.cuda.launch import THREADS, activation_of, blocks, program, vector_width
from minires.device import Array, module_of


def _run(name: str, array: Array, **arrays: Array) -> None:
    """Launch kernel `name` over all elements of contiguous arrays of one size; `array` has the activations' type."""
    vector = vector_width(array.size, *arrays.values())
    kernel = program("elementwise", ACTIVATION=activation_of(array), VECTOR=vector)[name]
    if array.size:
        kernel((blocks(array.size // vector),), (THREADS,), **arrays, size=array.size)


def relu(x: Array) -> Array:
    """See reference.relu."""
    x = module_of(x).ascontiguousarray(x)
    y = module_of(x).empty(x.shape, dtype=x.dtype)
    _run("relu", x, x=x, y=y)
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """See reference.relu_backward."""
    xp = module_of(dy)
    dy, y = xp.ascontiguousarray(dy), xp.ascontiguousarray(y)
    dx = xp.empty(dy.shape, dtype=dy.dtype)
    _run("relu_backward", dy, dy=dy, y=y, dx=dx)
    return dx


def accumulate(a: Array, b: Array) -> None:
    """a += b, both contiguous and of one dtype."""
    _run("accumulate", a, a=a, b=b)


def scale_and_shift(y: Array, scale: Array | None, shift: Array, shortcut: Array | None, relu: bool) -> None:
    """In place: y * scale + shift [+ shortcut] [relu], with scale and shift (C,): batch norm in inference. Without
    `scale`: the addition of a bias."""
    xp, channels = module_of(y), y.shape[-1]
    shortcut = None if shortcut is None else xp.ascontiguousarray(shortcut)
    vector = vector_width(channels, y, shortcut)
    kernel = program("elementwise", ACTIVATION=activation_of(y), VECTOR=vector)["scale_and_shift"]
    kernel(
        (blocks(y.size // vector),), (THREADS,), y=y, scale=None if scale is None else xp.ascontiguousarray(scale),
        shift=xp.ascontiguousarray(shift), shortcut=shortcut, relu=int(relu), channels=channels, size=y.size,
    )  # fmt: skip


def convert(x: Array, dtype: str) -> Array:
    """x as "float32" or "bfloat16"; x itself, made contiguous, if it is that already."""
    xp = module_of(x)
    x = xp.ascontiguousarray(x)
    if x.dtype == dtype:
        return x
    y = xp.empty(x.shape, dtype=dtype)
    if dtype == "float32":
        _run("as_float", x, x=x, y=y)
    else:
        _run("from_float", y, x=x, y=y)
    return y


def turn_weight(weight: Array, dtype: str) -> Array:
    """(kh, kw, C, O) float32 -> (kh, kw, O, C), turned by 180 degrees: with it, a convolution carries gradients
    back."""
    xp, (kh, kw, c, o) = module_of(weight), weight.shape
    weight, turned = xp.ascontiguousarray(weight), xp.empty((kh, kw, o, c), dtype=dtype)
    kernel = program("elementwise", ACTIVATION=activation_of(turned))["turn_weight"]
    kernel((blocks(weight.size),), (THREADS,), weight=weight, turned=turned, taps=kh * kw, channels=c, outputs=o)
    return turned
