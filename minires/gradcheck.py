"""Are the gradients right? `gradcheck` compares them with finite differences.

A derivative says how much an output moves when an input moves a little. Moving the input a little and looking
takes no calculus, so it makes a good witness against a backward written by hand:

    minires.gradcheck(lambda x, w: F.linear(x, w), np.random.randn(2, 3), np.random.randn(3, 4))

Reading order: after functional/. Next: testing.py, which draws the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minires.device import Array, module_of
from minires.tensor import Tensor, is_grad_enabled, no_grad

TINY = 400  # input elements x output elements up to which the full Jacobian is compared as well


class GradcheckError(AssertionError):
    """The gradients, or the function itself, are wrong; the message names the input, the element and both values."""


def gradcheck(
    fn: Callable[..., Tensor | tuple[Tensor, ...]],
    *arrays: Array,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    seed: int = 0,
    full: bool | None = None,
    names: Sequence[str] | None = None,
) -> bool:
    """Check the gradients of `fn` at `arrays` against central differences; True, or `GradcheckError`.

    fn       a pure function of Tensors, one for each array, returning a Tensor or a tuple of them. A layer with
             state (running statistics) is not pure: `testing.check_layer` makes it so.
    arrays   float64 arrays of any shape; arrays of integers or booleans are handed to fn as they are, as constants
    eps      how far inputs are moved. With float64 that leaves some 10 digits of the difference
    rtol, atol  |analytic - numeric| may be atol + rtol * |numeric|
    seed     of the random cotangent and directions
    full     compare the full Jacobian too: True, False, or None for "when it has at most 400 elements"
    names    what to call the inputs in messages; default "input 0", "input 1", ...

    How: outputs y are contracted with a random cotangent w, which gives a scalar L = <w, y> whose gradient g one
    backward computes; then for each input x a random direction d is drawn and <g, d> compared with
    (L(x + eps d) - L(x - eps d)) / (2 eps). Every element of w and d is between 0.5 and 1.5 in size, so none escapes.

    Why not `y.sum().backward()`: the cotangent is then all ones, and some outputs do not move along it at all. The
    elements of a softmax always sum to 1 and those of a batch normalisation to M * bias, whatever the input: the
    gradient of the sum is exactly zero, and a backward multiplied by 0, or by 2, passes. Nor does a sum see outputs
    that were mixed up among each other. Hence `.sum().backward()` is banned from gradient tests.

    Also found, and reported by the same error: outputs or gradients that are not finite or not float64; no gradient
    where there should be one; a function that gives other values when called again or inside `no_grad`, or that
    modifies its inputs or the gradient handed to its backward; gradients that share memory.
    Raises `TypeError` for arrays of another dtype (float32 has too few digits to be differenced; compare its
    gradients with those of float64 instead), `ValueError` for arrays that are not finite, and `RuntimeError` inside
    `no_grad`. Finite differences mean nothing at a kink, like relu at 0: keep inputs away (`testing.kink_free`).

    Source: the random projection with a floor is that of Chainer's check_backward.
    """
    arrays = tuple(array if hasattr(array, "dtype") else np.asarray(array) for array in arrays)
    names = [f"input {i}" for i in range(len(arrays))] if names is None else names
    _check_arguments(arrays, names)
    check = _Check(fn, arrays, names, eps, rtol, atol, np.random.default_rng(seed))
    check.directions()
    if full or (full is None and check.jacobian_size() <= TINY):
        check.jacobian()
    return True


def _check_arguments(arrays: tuple[Array, ...], names: Sequence[str]) -> None:
    if not is_grad_enabled():
        raise RuntimeError("gradcheck: called inside no_grad(), where no gradients are recorded")
    if len(names) != len(arrays):
        raise ValueError(f"gradcheck: names has {len(names)} entries, expected one for each of {len(arrays)} arrays")
    if not any(array.dtype == np.float64 for array in arrays):
        raise TypeError(f"gradcheck: dtypes are {[str(a.dtype) for a in arrays]}, expected at least one float64 array")
    for name, array in zip(names, arrays):
        if array.dtype.kind not in "iub" and array.dtype != np.float64:
            raise TypeError(f"gradcheck: {name} has dtype {array.dtype}, expected float64 (integers are constants)")
        if not module_of(array).isfinite(array).all():
            raise ValueError(f"gradcheck: {name} holds values that are not finite")


class _Check:
    """One call of gradcheck: the function, the point, the cotangents."""

    def __init__(self, fn: Callable, arrays: tuple[Array, ...], names: Sequence[str], eps, rtol, atol, rng):
        self.fn, self.arrays, self.names = fn, arrays, names
        self.eps, self.rtol, self.atol, self.rng = eps, rtol, atol, rng
        self.before = [array.copy() for array in arrays]
        self.variables = [i for i, array in enumerate(arrays) if array.dtype == np.float64]
        leaves, outputs = self.record()
        self.cotangents = [self.random_like(y.data) for y in outputs]
        self.check_repeatable([y.data for y in outputs])
        self.gradients = self.backward(leaves, outputs, self.cotangents)

    # The analytic side

    def record(self) -> tuple[list[Tensor | Array], tuple[Tensor, ...]]:
        """(inputs, outputs) of one recorded call on the very arrays given: same strides, same write protection."""
        leaves = [Tensor(a, requires_grad=True) if i in self.variables else a for i, a in enumerate(self.arrays)]
        outputs = self.call(leaves)
        self.check_inputs("fn")
        return leaves, outputs

    def call(self, inputs: Sequence[Tensor | Array]) -> tuple[Tensor, ...]:
        """fn's outputs as a tuple, each a Tensor of finite float64 numbers."""
        outputs = self.fn(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for i, y in enumerate(outputs):
            if not isinstance(y, Tensor):
                raise GradcheckError(f"gradcheck: output {i} is a {type(y).__name__}, expected a Tensor")
            if y.dtype != np.float64:
                raise GradcheckError(f"gradcheck: output {i} has dtype {y.dtype}, expected float64 like the inputs")
            if not module_of(y.data).isfinite(y.data).all():
                raise GradcheckError(f"gradcheck: output {i} holds values that are not finite")
        return outputs

    def backward(
        self, leaves: list[Tensor | Array], outputs: tuple[Tensor, ...], cotangents: list[Array]
    ) -> list[Array | None]:
        """The gradient of sum_k <cotangent k, output k> with respect to each input; None where none arrived."""
        # One node above all outputs: `outputs[0].backward(...)` would free a graph that outputs[1] needs too.
        root = Tensor.from_op(np.zeros(()), outputs, lambda dy: cotangents)
        kept = [w.copy() for w in cotangents]
        if root.requires_grad:
            root.backward()
        self.check_inputs("backward")
        for i, (w, copy) in enumerate(zip(cotangents, kept)):
            if not (w == copy).all():
                raise GradcheckError(f"gradcheck: backward modified the gradient it was given for output {i}")
        gradients = [leaf.grad if isinstance(leaf, Tensor) else None for leaf in leaves]
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            if gradient.dtype != np.float64:
                raise GradcheckError(
                    f"gradcheck: the gradient of {self.names[i]} has dtype {gradient.dtype}, expected float64"
                )
            if not module_of(gradient).isfinite(gradient).all():
                raise GradcheckError(f"gradcheck: the gradient of {self.names[i]} holds values that are not finite")
            others = [*gradients[:i], *cotangents, *self.arrays]
            if any(other is not None and module_of(other).may_share_memory(gradient, other) for other in others):
                raise GradcheckError(f"gradcheck: the gradient of {self.names[i]} shares memory with another array")
        return gradients

    def check_inputs(self, who: str) -> None:
        for name, array, before in zip(self.names, self.arrays, self.before):
            if not (array == before).all():
                raise GradcheckError(f"gradcheck: {who} modified {name}")

    def check_repeatable(self, outputs: list[Array]) -> None:
        """A second call must agree to 12 digits; not to the last bit, since sums on a GPU may change order."""
        with no_grad():
            again = self.call([Tensor(a) if i in self.variables else a for i, a in enumerate(self.arrays)])
        if [y.shape for y in again] != [y.shape for y in outputs]:
            raise GradcheckError("gradcheck: fn is not deterministic: a second call gave outputs of other shapes")
        for i, (y, second) in enumerate(zip(outputs, again)):
            if y.size and abs(y - second.data).max() > 1e-12 * abs(y).max():
                raise GradcheckError(f"gradcheck: fn is not deterministic: a second call gave another output {i}")

    # The numeric side

    def random_like(self, array: Array) -> Array:
        """Random signs, sizes between 0.5 and 1.5: no coordinate escapes."""
        values = self.rng.uniform(0.5, 1.5, array.shape) * self.rng.choice([-1.0, 1.0], array.shape)
        return module_of(array).asarray(values)

    def move(self, i: int, direction: Array) -> list[Array]:
        """The derivative of every output along `direction` in input i, by central differences."""
        ends = []
        for step in (self.eps, -self.eps):
            inputs = list(self.before)
            inputs[i] = self.before[i] + step * direction
            with no_grad():
                ends.append(self.call([Tensor(a) if j in self.variables else a for j, a in enumerate(inputs)]))
        return [(plus.data - minus.data) / (2 * self.eps) for plus, minus in zip(*ends)]

    def unit_vectors(self, i: int) -> Iterator[tuple[tuple[int, ...], Array]]:
        """(index, direction with a 1 there) for every element of input i."""
        for index in np.ndindex(self.before[i].shape):
            direction = module_of(self.before[i]).zeros_like(self.before[i])
            direction[index] = 1
            yield index, direction

    def excess(self, analytic: float, numeric: float) -> float:
        """By how much the difference exceeds what is allowed."""
        return abs(analytic - numeric) - (self.atol + self.rtol * abs(numeric))

    # The comparisons

    def directions(self) -> None:
        """One random direction for each input; on failure the worst element is looked for, one by one."""
        for i in self.variables:
            direction = self.random_like(self.before[i])
            numeric = _dot(self.cotangents, self.move(i, direction))
            gradient = self.gradients[i]
            analytic = 0.0 if gradient is None else _dot([gradient], [direction])
            if self.excess(analytic, numeric) > 0:
                index, element, expected = self.worst_element(i)
                self.fail(i, index, element, expected, f"along a random direction {analytic:.9g}, not {numeric:.9g}")

    def worst_element(self, i: int) -> tuple[tuple[int, ...], float, float]:
        """(index, analytic, numeric) where the gradient of input i is most wrong; two calls of fn an element."""
        worst, worst_excess, gradient = ((), 0.0, 0.0), -math.inf, self.gradients[i]
        for index, direction in self.unit_vectors(i):
            numeric = _dot(self.cotangents, self.move(i, direction))
            analytic = 0.0 if gradient is None else float(gradient[index])
            if self.excess(analytic, numeric) > worst_excess:
                worst, worst_excess = (index, analytic, numeric), self.excess(analytic, numeric)
        return worst

    def jacobian_size(self) -> int:
        return sum(self.before[i].size for i in self.variables) * sum(w.size for w in self.cotangents)

    def jacobian(self) -> None:
        """Every output element's derivative with respect to every input element."""
        columns = [{index: self.move(i, d) for index, d in self.unit_vectors(i)} for i in self.variables]
        for k, cotangent in enumerate(self.cotangents):
            for row in np.ndindex(cotangent.shape):
                leaves, outputs = self.record()
                one_hot = [module_of(w).zeros_like(w) for w in self.cotangents]
                one_hot[k][row] = 1
                gradients = self.backward(leaves, outputs, one_hot)
                for i, moved in zip(self.variables, columns):
                    gradient = gradients[i]
                    for index, outputs_moved in moved.items():
                        analytic = 0.0 if gradient is None else float(gradient[index])
                        numeric = float(outputs_moved[k][row])
                        if self.excess(analytic, numeric) > 0:
                            self.fail(i, index, analytic, numeric, f"for output {k}, element {row}, alone")

    def fail(self, i: int, index: tuple[int, ...], analytic: float, numeric: float, detail: str) -> None:
        missing = " (no gradient arrived)" if self.gradients[i] is None else ""
        allowed = self.atol + self.rtol * abs(numeric)
        raise GradcheckError(
            f"gradcheck: {self.names[i]} of shape {self.before[i].shape}, element {index}: analytic gradient "
            f"{analytic:.9g}{missing}, numeric {numeric:.9g}; the difference {abs(analytic - numeric):.3g} exceeds "
            f"{allowed:.3g} ({detail})"
        )


def _dot(left: Sequence[Array], right: Sequence[Array]) -> float:
    """<left, right>, summed over all arrays."""
    return sum(float((a * b).sum()) for a, b in zip(left, right))
