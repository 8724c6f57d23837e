"""The operators and methods of Tensor: x + y, x @ w, x > 0, x.sum(), ...

functional/__init__.py gives them to Tensor. tensor.py names the class below as Tensor's base, for editors alone.

Reading order: any time after more.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from minires.device import Array
from minires.functional import activation, arithmetic, more, reduction, shape
from minires.functional.arithmetic import add, as_tensor, divide, matmul, multiply, power, subtract
from minires.tensor import Tensor, is_grad_enabled

Operand = Tensor | Array | float  # beside a Tensor


def reflected(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Array | float], Tensor]:
    """The operator for a number or an array on the left: 1 - x, array @ x."""

    def method(b: Tensor, a: Array | float) -> Tensor:
        return operation(as_tensor(a, b), b)

    return method


def comparison(compare: Callable) -> Callable[[Tensor, Operand], Tensor]:
    """The operator a == b, a < b, ... for Tensors, by `compare` for arrays: a Tensor of booleans without a gradient."""

    def method(a: Tensor, b: Operand) -> Tensor:
        # A number stays a number: NumPy compares bytes with 300, and float32 with 0.1, as one would.
        other = b if isinstance(b, (bool, int, float)) else as_tensor(b, a).data
        return Tensor(compare(a.data, other))

    return method


def in_place(
    symbol: str, operation: Callable[[Tensor, Operand], Tensor], change: Callable
) -> Callable[[Tensor, Operand], Tensor]:
    """The operator called `symbol`, such as "-=". In Python `a -= b` gives the name a to a new object, here to the
    tensor `operation(a, b)`.

    A leaf that requires a gradient, or a Parameter, is a weight. A new object would be none. So a weight changes in
    place, by `change(array, array)`, under `no_grad`, as in PyTorch; elsewhere the operator raises `RuntimeError`.
    """

    def method(a: Tensor, b: Operand) -> Tensor:
        is_weight = a.node is None and (a.requires_grad or type(a) is not Tensor)  # a Parameter may be frozen
        if not is_weight:
            return operation(a, b)
        if is_grad_enabled():
            raise RuntimeError(
                f"w {symbol} ...: would make a new tensor of the weight w, and w.grad would be None from then on; "
                f"write w.data {symbol} ..., or put the update under `with mr.no_grad():`"
            )
        a.data = change(a.data, as_tensor(b, a).data)
        return a

    return method


WITHOUT_GRADIENT = {  # functions of NumPy whose results no gradient flows through anyway
    "shape", "ndim", "size", "allclose", "isclose", "array_equal", "argmax", "argmin", "argsort", "result_type",
    "shares_memory", "may_share_memory", "array_repr", "array_str", "array2string", "save", "savez", "savetxt",
}  # fmt: skip


def on_arrays(self: Tensor, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
    """What NumPy calls for np.stack([x, y]), np.mean(x) and the like: `function` of the tensors' arrays.

    Raises `TypeError` where a gradient would be lost on the way.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(plain, value))
        if not isinstance(value, Tensor):
            return value
        if value.requires_grad and is_grad_enabled() and function.__name__ not in WITHOUT_GRADIENT:
            raise TypeError(
                f"np.{function.__name__}: no gradient would flow through NumPy; use a method of Tensor or a function "
                f"of minires.functional, or pass x.data to do without the gradient"
            )
        return value.numpy()

    return function(*plain(args), **{name: plain(value) for name, value in kwargs.items()})


def formatted(self: Tensor, spec: str) -> str:
    """f"{loss:.3f}" for a tensor of one element."""
    return format(self.item() if spec else str(self), spec)


SPELLINGS = {  # of PyTorch
    "view": "x.reshape(...)", "permute": "x.transpose(...)", "unsqueeze": "x[None], x[:, None], ...",
    "clamp": "x.clip(low, high)", "clone": "mr.Tensor(x.data.copy())", "cuda": "x.to('cuda')", "cpu": "x.to('cpu')",
    "float": "mr.Tensor(x.data.astype(np.float32))", "double": "mr.Tensor(x.data.astype(np.float64))",
    "long": "x.data.astype(np.int64)", "astype": "mr.Tensor(x.data.astype(...))", "dim": "x.ndim",
    "numel": "x.size", "min": "-(-x).max()", "std": "x.var().sqrt()", "matmul": "x @ y", "any": "x.data.any()",
    "all": "x.data.all()", "tolist": "x.data.tolist()", "requires_grad_": "x.requires_grad = True",
}  # fmt: skip


def missing(self: Tensor, name: str) -> NoReturn:
    """`AttributeError`, with what minires has instead of a method of PyTorch's."""
    hint = f"; write {SPELLINGS[name]}" if name in SPELLINGS else ""
    raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}", name=name, obj=self)


class Operators:
    """What functional/__init__.py gives to Tensor."""

    __add__ = __radd__ = add
    __sub__, __rsub__ = subtract, reflected(subtract)
    __mul__ = __rmul__ = multiply
    __truediv__, __rtruediv__ = divide, reflected(divide)
    __matmul__, __rmatmul__ = matmul, reflected(matmul)
    __neg__, __pow__, __abs__, __getitem__ = arithmetic.negative, power, more.abs, shape.getitem
    __iadd__ = in_place("+=", add, operator.iadd)
    __isub__ = in_place("-=", subtract, operator.isub)
    __imul__ = in_place("*=", multiply, operator.imul)
    __itruediv__ = in_place("/=", divide, operator.itruediv)
    __ipow__ = in_place("**=", power, operator.ipow)
    __imatmul__ = in_place("@=", matmul, operator.imatmul)
    __lt__, __le__ = comparison(operator.lt), comparison(operator.le)
    __gt__, __ge__ = comparison(operator.gt), comparison(operator.ge)
    __eq__: ClassVar[Callable[[Tensor, Operand], Tensor]] = comparison(operator.eq)
    __ne__: ClassVar[Callable[[Tensor, Operand], Tensor]] = comparison(operator.ne)
    __and__, __or__ = comparison(operator.and_), comparison(operator.or_)  # of masks
    __invert__ = lambda self: Tensor(~self.data)  # noqa: E731
    __array_function__, __format__ = on_arrays, formatted
    if not TYPE_CHECKING:  # or every attribute would be there for an editor
        __getattr__ = missing
    __hash__ = object.__hash__  # a class with __eq__ would have none: tensors are keys, by identity
    exp, log, sqrt, relu = arithmetic.exp, arithmetic.log, arithmetic.sqrt, activation.relu
    reshape, transpose, flatten, squeeze = shape.reshape, shape.transpose, shape.flatten, more.squeeze
    sum, mean, max, var, argmax = reduction.sum, reduction.mean, reduction.max, more.var, more.argmax
    abs, clip, tanh, sigmoid = more.abs, more.clip, more.tanh, more.sigmoid

    @property
    def T(self: Any) -> Tensor:
        """All axes reversed."""
        return shape.transpose(self)
