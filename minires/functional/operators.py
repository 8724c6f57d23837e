"""The operators and methods of Tensor: x + y, x @ w, x > 0, x.sum(), ...

functional/__init__.py gives them to Tensor. tensor.py names the class below as Tensor's base, for editors alone.

Reading order: any time after more.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from minires.device import Array
from minires.functional.activation import relu
from minires.functional.arithmetic import (
    add,
    as_tensor,
    divide,
    exp,
    log,
    matmul,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
)
from minires.functional.more import abs, argmax, clip, sigmoid, squeeze, tanh, var
from minires.functional.reduction import max, mean, sum
from minires.functional.shape import flatten, getitem, reshape, transpose
from minires.tensor import Tensor, is_grad_enabled


def reflected(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Array | float], Tensor]:
    """The operator for a number or an array on the left: 1 - x, array @ x."""

    def method(b: Tensor, a: Array | float) -> Tensor:
        return operation(as_tensor(a, b), b)

    return method


def comparison(compare: Callable) -> Callable[[Tensor, Tensor | Array | float], Tensor]:
    """The operator a == b, a < b, ... for Tensors, by `compare` for arrays: a Tensor of booleans without a gradient."""

    def method(a: Tensor, b: Tensor | Array | float) -> Tensor:
        # A number stays a number: NumPy compares bytes with 300, and float32 with 0.1, as one would.
        other = b if isinstance(b, (bool, int, float)) else as_tensor(b, a).data
        return Tensor(compare(a.data, other))

    return method


def in_place(symbol: str, operation: Callable[[Tensor, Tensor], Tensor], change: Callable) -> Callable:
    """The operator called `symbol`, such as "-=". In Python `a -= b` gives the name a to a new object, here to the
    tensor `operation(a, b)`.

    A leaf that requires a gradient is a weight, and a new object would be none. So a weight changes in place, by
    `change(array, array)`, under `no_grad`, as in PyTorch; elsewhere the operator raises `RuntimeError`.
    """

    def method(a: Tensor, b: Tensor | Array | float) -> Tensor:
        if not a.requires_grad or a.node is not None:
            return operation(a, b)
        if is_grad_enabled():
            raise RuntimeError(
                f"w {symbol} ...: would make a new tensor of the weight w, and w.grad would be None from then on; "
                f"write w.data {symbol} ..., or put the update under `with mr.no_grad():`"
            )
        a.data = change(a.data, as_tensor(b, a).data)
        return a

    return method


class Operators:
    """What functional/__init__.py gives to Tensor."""

    __add__ = __radd__ = add
    __sub__, __rsub__ = subtract, reflected(subtract)
    __mul__ = __rmul__ = multiply
    __truediv__, __rtruediv__ = divide, reflected(divide)
    __matmul__, __rmatmul__ = matmul, reflected(matmul)
    __neg__, __pow__, __abs__, __getitem__ = negative, power, abs, getitem
    __iadd__ = in_place("+=", add, operator.iadd)
    __isub__ = in_place("-=", subtract, operator.isub)
    __imul__ = in_place("*=", multiply, operator.imul)
    __itruediv__ = in_place("/=", divide, operator.itruediv)
    __lt__, __le__ = comparison(operator.lt), comparison(operator.le)
    __gt__, __ge__ = comparison(operator.gt), comparison(operator.ge)
    __eq__, __ne__ = comparison(operator.eq), comparison(operator.ne)
    __hash__ = object.__hash__  # a class with __eq__ would have none: tensors are keys, by identity
    sum, mean, max, var, argmax = sum, mean, max, var, argmax
    reshape, transpose, flatten, squeeze = reshape, transpose, flatten, squeeze
    exp, log, sqrt, relu, abs, clip, tanh, sigmoid = exp, log, sqrt, relu, abs, clip, tanh, sigmoid
    T = property(transpose, doc="All axes reversed.")
