"""Property tests for gradients: hypothesis strategies, and `check_layer`, for layers of your own.

A layer with a backward written by hand, and its property test, in ten lines:

    import numpy as np
    from minires import Tensor, nn, testing

    class Swish(nn.Module):
        def forward(self, x):
            s = 1 / (1 + np.exp(-x.data))
            def backward(dy):
                return (dy * (s + x.data * s * (1 - s)),)
            return Tensor.from_op(x.data * s, (x,), backward)

    def test_swish():
        testing.check_layer(Swish, testing.shapes())

pytest runs it on some thirty shapes, among them the awkward ones, in training and evaluation mode, on arrays that
are strided, reversed or read-only; whatever fails is shrunk to the smallest shape that still fails.

This file is the only one that imports hypothesis: pip install hypothesis.
Reading order: after gradcheck.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    from hypothesis import given
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("minires.testing needs hypothesis; install it with: pip install hypothesis") from error

from minires.device import Array, default_generator, module_of
from minires.gradcheck import gradcheck
from minires.nn import Module, Parameter
from minires.tensor import Tensor

LAYOUTS = ("contiguous", "transposed", "strided", "reversed", "loose", "read-only")
MIN_GAP = 1e-3  # a thousand times the eps of gradcheck

# Arrays -----------------------------------------------------------------------------------------------------


def kink_free_array(
    shape: tuple[int, ...],
    seed: int | np.random.Generator = 0,
    gap: float | None = None,
    layout: str = "contiguous",
) -> np.ndarray:
    """Random float64 values, any two at least `gap` apart and all at least `gap` from 0.

    Finite differences are wrong where the function has a kink between x - eps and x + eps: relu at 0, max pooling
    where two elements are equal. Here no kink can be that close, by construction: the values are a permutation of
    ±1, ±2, ... times 2 gap, plus a jitter of up to gap / 2. The default gap is 2 / size, which spreads the values
    over about ±2, but at least 0.001.
    """
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    gap = max(2 / max(size, 1), MIN_GAP) if gap is None else gap
    levels = np.arange(size) - size // 2  # -2, -1, 0, 1
    levels += levels >= 0  # -2, -1, 1, 2
    values = 2 * gap * rng.permutation(levels) + rng.uniform(-gap / 2, gap / 2, size)
    return with_layout(values.reshape(shape), layout)


def with_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """A copy of `array` laid out in memory as one of LAYOUTS says; NaN fills the gaps of "strided" floats.

    "loose" is contiguous; along axes of length 1 its strides are such as a transposition leaves, not to be trusted.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"with_layout: layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if layout == "transposed":
        return np.array(array, order="F")
    if layout == "strided":
        every_second = (*(slice(None, None, 2) for _ in array.shape), ...)
        wide = np.full([2 * n for n in array.shape], np.nan if array.dtype.kind == "f" else 0, dtype=array.dtype)
        wide[every_second] = array
        return wide[every_second]
    if layout == "reversed":
        backwards = (*(slice(None, None, -1) for _ in array.shape), ...)
        return np.array(array[backwards], order="C")[backwards]
    array = np.array(array, order="C")
    if layout == "loose":
        order = sorted(range(array.ndim), key=lambda axis: array.shape[axis] != 1)  # the axes of length 1 come first
        return np.array(array.transpose(order), order="C").transpose(np.argsort(order))
    array.flags.writeable = layout != "read-only"
    return array


def seeds() -> st.SearchStrategy[int]:
    """Seeds for random generators."""
    return st.integers(0, 2**32 - 1)


def kink_free(
    shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]],
    gap: float | None = None,
    layouts: Sequence[str] = LAYOUTS,
) -> st.SearchStrategy[np.ndarray]:
    """Arrays of `kink_free_array`, of one shape or of drawn shapes, in all layouts."""
    shape = st.just(shape) if isinstance(shape, tuple) else shape
    return st.builds(kink_free_array, shape, seeds(), st.just(gap), st.sampled_from(layouts))


# Shapes -----------------------------------------------------------------------------------------------------


def shapes(min_dims: int = 1, max_dims: int = 4, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of `min_dims` to `max_dims` axes of 1 to `max_side` elements each."""
    return st.lists(st.integers(1, max_side), min_size=min_dims, max_size=max_dims).map(tuple)


@st.composite
def image_shapes(draw: st.DrawFn, channels: int | None = None) -> tuple[int, int, int, int]:
    """(N, H, W, C): N 1 to 3, H and W 1 to 9 and never equal, C 1 to 5, or `channels`."""
    h, w = _unequal(draw, 1, 1)
    return draw(st.integers(1, 3)), h, w, channels or draw(st.integers(1, 5))


def _unequal(draw: st.DrawFn, least_h: int, least_w: int) -> tuple[int, int]:
    """(H, W), up to 9: a height taken for a width must not go unnoticed, so they differ."""
    h, w = draw(st.integers(least_h, 9)), draw(st.integers(least_w, 8))
    return h, w + (w >= h)


def _pair(draw: st.DrawFn, values: st.SearchStrategy[int]) -> tuple[int, int]:
    """(vertical, horizontal), drawn independently of each other."""
    return draw(values), draw(values)


@dataclass(frozen=True)
class ConvGeometry:
    """What a convolution is called with; `options` are the keyword arguments of `functional.conv2d`."""

    x_shape: tuple[int, int, int, int]  # (N, H, W, C)
    weight_shape: tuple[int, int, int, int]  # (kh, kw, C/groups, O)
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def options(self) -> dict[str, Any]:
        """stride, padding, dilation, groups."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


@st.composite
def conv_geometries(draw: st.DrawFn) -> ConvGeometry:
    """Convolutions that fit: N 1-3, C 1-5, H and W 1-9 (unequal), kernel 1-3 or 7, stride 1-3, padding 0-3,
    dilation 1-3, groups 1-5 (depthwise among them); the two directions differ, strides need not divide."""
    kernel = _pair(draw, st.sampled_from([1, 2, 3, 7]))
    stride, padding = _pair(draw, st.integers(1, 3)), _pair(draw, st.integers(0, 3))
    dilation = [draw(st.integers(1, 3)) if k < 7 else 1 for k in kernel]
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    groups = draw(st.integers(1, 5))
    channels = draw(st.integers(1, 5 // groups))  # of one group
    outputs = draw(st.integers(1, 5 // groups))
    x_shape = (draw(st.integers(1, 3)), *_unequal(draw, *least), groups * channels)
    dh, dw = dilation
    return ConvGeometry(x_shape, (*kernel, channels, groups * outputs), stride, padding, (dh, dw), groups)


@dataclass(frozen=True)
class PoolGeometry:
    """What a pooling operation is called with; `options` are its keyword arguments."""

    x_shape: tuple[int, int, int, int]  # (N, H, W, C)
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def options(self) -> dict[str, Any]:
        """kernel_size, stride, padding."""
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}


@st.composite
def pool_geometries(draw: st.DrawFn) -> PoolGeometry:
    """Pooling that fits: windows 1-3 or 7, overlapping or with gaps between them, padding up to half a window."""
    kernel = _pair(draw, st.sampled_from([1, 2, 3, 7]))
    stride = _pair(draw, st.integers(1, 3))
    ph, pw = (draw(st.integers(0, min(3, k // 2))) for k in kernel)
    least = [max(1, k - 2 * p) for k, p in zip(kernel, (ph, pw))]
    x_shape = (draw(st.integers(1, 3)), *_unequal(draw, *least), draw(st.integers(1, 5)))
    return PoolGeometry(x_shape, kernel, stride, (ph, pw))


# Checks -----------------------------------------------------------------------------------------------------


def check_op(
    fn: Callable[..., Tensor | tuple[Tensor, ...]],
    *arrays: Array,
    names: Sequence[str] | None = None,
    seed: int = 0,
    full: bool | None = None,
) -> None:
    """All that should hold for an operation at float64 `arrays`: `gradcheck`, and float32 gradients like float64's.

    fn, arrays, names, seed and full are those of `gradcheck`. In float32, outputs and gradients must stay float32
    and differ from the float64 ones by less than 1e-4 of their L2 norm (or of the cotangent's, if that is larger:
    where the true gradient is 0, rounding is all there is). Raises `AssertionError`.
    """
    gradcheck(fn, *arrays, names=names, seed=seed, full=full)
    names = [f"input {i}" for i in range(len(arrays))] if names is None else names
    single = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
    double = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in single]  # rounded alike
    outputs, gradients, _ = _outputs_and_gradients(fn, single, seed)
    expected_outputs, expected_gradients, scale = _outputs_and_gradients(fn, double, seed)
    results = [(f"output {i}", y, expected) for i, (y, expected) in enumerate(zip(outputs, expected_outputs))]
    results += [(f"the gradient of {name}", *pair) for name, *pair in zip(names, gradients, expected_gradients)]
    for name, got, expected in results:
        if expected is None:
            continue
        if got.dtype != np.float32:
            raise AssertionError(f"{name} has dtype {got.dtype} for float32 inputs, expected float32")
        difference, allowed = _norm(got - expected), 1e-4 * max(_norm(expected), scale)
        if difference > allowed:
            raise AssertionError(
                f"{name} in float32 differs from float64 by {difference:.3g} (L2 norm), allowed is {allowed:.3g}"
            )


def _outputs_and_gradients(fn: Callable, arrays: Sequence[Array], seed: int) -> tuple[list, list, float]:
    """(outputs, gradients of <cotangent, outputs>, norm of the cotangent) with a cotangent drawn from `seed`."""
    inputs = [Tensor(a, requires_grad=True) if a.dtype.kind == "f" else a for a in arrays]
    outputs = fn(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    rng = np.random.default_rng(seed)
    cotangents = [module_of(y.data).asarray(rng.standard_normal(y.shape), dtype=y.dtype) for y in outputs]
    root = Tensor.from_op(np.zeros(()), outputs, lambda dy: cotangents)
    if root.requires_grad:
        root.backward()
    gradients = [x.grad if isinstance(x, Tensor) else None for x in inputs]
    return [y.data for y in outputs], gradients, _norm(*cotangents)


def _norm(*arrays: Array) -> float:
    return sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays) ** 0.5


def check_layer(
    layer_factory: Callable[[], Module],
    input_shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]],
    *,
    call: Callable[[Module, Tensor], Tensor | tuple[Tensor, ...]] | None = None,
    randomize: bool = True,
    seed: int = 0,
) -> None:
    """Check the gradients of a layer with respect to its input and every parameter, in training and eval mode.

    layer_factory  makes the layer; its class will do, if that needs no arguments
    input_shape    of the float input, or a hypothesis strategy of shapes: `image_shapes(channels=3)`; the check then
                   runs as a property test (settings come from the hypothesis profile)
    call           how to call it, if not by layer(x): `lambda layer, x: layer(x, x)`
    randomize      draw parameters anew and shift float buffers: with the usual initial values, scale 1 and shift 0,
                   a backward that forgets the scale looks right
    seed           of the input, the parameters and the directions

    A layer is not a function: its running statistics and random generators move with every call. So each call is
    made on a fresh copy, in which the parameters are replaced by the arguments of the check, and the default
    generator is put back to where it was. Beyond what `check_op` looks at (gradients in float64 and float32, inputs
    and incoming gradients left alone, no two gradients in one memory), buffers must not change in eval mode.
    Raises `AssertionError` (`GradcheckError`) naming the input or parameter and the mode.
    """
    if isinstance(input_shape, st.SearchStrategy):

        @given(shape=input_shape, seed=seeds())
        def check_one(shape: tuple[int, ...], seed: int) -> None:
            check_layer(layer_factory, shape, call=call, randomize=randomize, seed=seed)

        check_one()  # pyright: ignore[reportCallIssue] # hypothesis gives the arguments
        return

    layer = layer_factory()
    if not isinstance(layer, Module):
        raise TypeError(f"check_layer: layer_factory returned a {type(layer).__name__}, expected a Module")
    rng = np.random.default_rng(seed)
    if randomize:
        _randomize(layer, rng)
    parameters = dict(layer.named_parameters())
    x = kink_free_array(input_shape, rng, layout=LAYOUTS[rng.integers(len(LAYOUTS))])
    for mode in ("training", "eval"):
        layer.train(mode == "training")
        fn = _functional_form(layer, list(parameters.values()), call or Module.__call__)
        names = [f"{name} ({mode} mode)" for name in ("the input", *parameters)]
        check_op(fn, x, *(p.data.astype(np.float64) for p in parameters.values()), names=names, seed=seed)


def _randomize(layer: Module, rng: np.random.Generator) -> None:
    for module in layer.modules():
        for name, value in vars(module).items():
            if isinstance(value, Parameter):
                value.data[...] = kink_free_array(value.shape, rng)
            elif name in module.buffer_names and _holds_floats(value):
                value += rng.uniform(0.1, 1.0, value.shape).astype(value.dtype)  # variances stay positive


def _holds_floats(buffer: Array) -> bool:
    return hasattr(buffer, "dtype") and buffer.dtype.kind == "f"


def _functional_form(layer: Module, own: list[Parameter], call: Callable) -> Callable:
    """fn(x, *parameters), pure: the layer as it is now, but with these parameters in the place of its `own`."""
    generator = default_generator().bit_generator
    generator_state = generator.state
    place = {id(parameter): i for i, parameter in enumerate(own)}

    def fn(x: Tensor, *parameters: Tensor) -> Tensor | tuple[Tensor, ...]:
        generator.state = generator_state
        fresh = copy.deepcopy(layer)
        pairs = list(zip(fresh.modules(), layer.modules()))
        for module, original in pairs:
            for name, value in vars(original).items():
                if isinstance(value, Parameter):
                    vars(module)[name] = parameters[place[id(value)]]
                elif name in module.buffer_names and _holds_floats(value):
                    setattr(module, name, value.astype(x.dtype))
        outputs = call(fresh, x)
        if not layer.training:
            for module, original in pairs:
                for name in module.buffer_names:
                    if not np.array_equal(np.asarray(getattr(original, name), x.dtype), getattr(module, name)):
                        raise AssertionError(f"check_layer: eval mode changed {name} of {type(module).__name__}")
        return outputs

    return fn
