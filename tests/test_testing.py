"""The strategies keep their promises, and check_layer finds each kind of wrong layer."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires.functional as F
from minires import GradcheckError, Tensor, default_generator, nn, testing
from minires.reference import output_size
from minires.testing import check_layer, check_op

# Strategies


@given(shape=testing.shapes(min_dims=0), seed=testing.seeds(), gap=st.sampled_from([None, 0.01, 1.0]))
def test_kink_free_arrays_have_gaps(shape, seed, gap):
    array = testing.kink_free_array(shape, seed, gap)
    assert array.shape == shape
    assert array.dtype == np.float64
    gap = gap or max(2 / array.size, testing.MIN_GAP)
    values = np.sort(np.append(array.ravel(), 0))  # 0 counts as one of them
    assert np.diff(values).min() >= gap * (1 - 1e-9)
    assert (array == testing.kink_free_array(shape, seed, gap)).all()


def test_kink_free_arrays_of_one_or_no_element():
    assert testing.kink_free_array((1,), 0).shape == (1,)
    assert testing.kink_free_array((2, 0), 0).shape == (2, 0)


@given(array=testing.kink_free(testing.shapes(min_dims=0)), layout=st.sampled_from(testing.LAYOUTS))
def test_layouts_keep_the_values(array, layout):
    laid_out = testing.with_layout(array, layout)
    assert isinstance(laid_out, np.ndarray)
    np.testing.assert_array_equal(laid_out, array)
    assert not np.shares_memory(laid_out, array)
    assert laid_out.flags.writeable == (layout != "read-only")


def test_layouts_are_what_they_are_called():
    def flags(layout):
        array = testing.with_layout(np.arange(6.0).reshape(2, 3), layout)
        return array.flags.c_contiguous, array.flags.f_contiguous, array.strides[0] > 0

    assert flags("contiguous") == flags("read-only") == (True, False, True)
    assert flags("transposed") == (False, True, True)
    assert flags("strided") == (False, False, True)
    assert flags("reversed") == (False, False, False)
    with pytest.raises(ValueError, match="layout is 'diagonal', expected one of contiguous"):
        testing.with_layout(np.zeros(2), "diagonal")


@given(shape=testing.image_shapes())
def test_image_shapes(shape):
    n, h, w, c = shape
    assert 1 <= n <= 3
    assert 1 <= h <= 9
    assert 1 <= w <= 9
    assert h != w
    assert 1 <= c <= 5


@given(geometry=testing.conv_geometries())
def test_conv_geometries_fit(geometry):
    n, h, w, c = geometry.x_shape
    kh, kw, channels, outputs = geometry.weight_shape
    assert 1 <= n <= 3
    assert 1 <= h <= 9
    assert 1 <= w <= 9
    assert h != w
    assert 1 <= c == channels * geometry.groups <= 5
    assert outputs % geometry.groups == 0
    assert 0 not in output_size(geometry.x_shape, (kh, kw), geometry.stride, geometry.padding, geometry.dilation)


@given(geometry=testing.pool_geometries())
def test_pool_geometries_fit(geometry):
    assert 0 not in output_size(geometry.x_shape, geometry.kernel_size, geometry.stride, geometry.padding)
    assert all(2 * p <= k for p, k in zip(geometry.padding, geometry.kernel_size))


@pytest.mark.parametrize(
    ("strategy", "property_"),
    [
        (testing.conv_geometries(), lambda g: g.groups > 1),
        (testing.conv_geometries(), lambda g: g.groups > 1 and g.weight_shape[2] > 1),
        (testing.conv_geometries(), lambda g: g.weight_shape[0] == 7),
        (testing.conv_geometries(), lambda g: 1 < g.dilation[0] != g.dilation[1] and g.weight_shape[0] > 1),
        (testing.conv_geometries(), lambda g: g.stride[0] > g.weight_shape[0]),
        (testing.conv_geometries(), lambda g: g.padding[0] != g.padding[1]),
        (testing.conv_geometries(), lambda g: g.weight_shape[:2] == (1, 1) and g.stride != (1, 1)),
        (testing.conv_geometries(), lambda g: (g.x_shape[1] + 2 * g.padding[0] - 1) % g.stride[0] != 0),
        (testing.pool_geometries(), lambda g: g.stride[0] < g.kernel_size[0] and g.padding[0] > 0),
        (testing.pool_geometries(), lambda g: g.stride[1] > g.kernel_size[1]),
    ],
)
def test_geometries_reach_the_awkward_cases(strategy, property_):
    from hypothesis import find, settings

    find(strategy, property_, settings=settings(max_examples=1000, derandomize=True, database=None))


# check_op


def test_check_op_compares_float32_with_float64():
    def leaks_float64(x):
        return Tensor.from_op(x.data * np.ones(1), (x,), lambda dy: (dy,))

    def loses_digits(x):  # right in float64, all but wrong in float32
        return Tensor.from_op((x.data + x.dtype.type(1e4)) - x.dtype.type(1e4), (x,), lambda dy: (dy,))

    def wrong_gradient_in_float32(x):
        factor = 1 if x.dtype == np.float64 else 1.001
        return Tensor.from_op(x.data * 1, (x,), lambda dy: (dy * dy.dtype.type(factor),))

    x = testing.kink_free_array((5,))
    with pytest.raises(AssertionError, match="output 0 has dtype float64 for float32 inputs"):
        check_op(leaks_float64, x)
    with pytest.raises(AssertionError, match="output 0 in float32 differs"):
        check_op(loses_digits, x)
    with pytest.raises(AssertionError, match="gradient of input 0 in float32 differs"):
        check_op(wrong_gradient_in_float32, x)
    check_op(lambda x, i: x[i] * x[i], x, np.array([0, 0, 2]))


# check_layer


def test_the_example_in_the_docstring_works_and_finds_a_wrong_backward():
    _, _, rest = testing.__doc__.partition("in ten lines:\n")
    example, _, _ = rest.partition("\npytest runs it")
    example = textwrap.dedent(example)
    assert len([line for line in example.splitlines() if line.strip()]) == 10
    namespace = {}
    exec(example, namespace)
    namespace["test_swish"]()
    right = "s + x.data * s * (1 - s)"
    assert right in example
    exec(example.replace(right, "s + x.data * s"), namespace)
    with pytest.raises(GradcheckError, match="the input"):
        namespace["test_swish"]()


class Affine(nn.Module):
    """x * weight + bias, a counter and a moving buffer; subclasses break it."""

    buffer_names = ("calls", "shift")

    def __init__(self, features: int = 3):
        super().__init__()
        self.weight = nn.Parameter(np.ones(features, np.float32))
        self.bias = nn.Parameter(np.zeros(features, np.float32))
        self.calls = 0
        self.shift = np.zeros(features, np.float32)

    def backward(self, dy, x, weight):
        return dy * weight, (dy * x).sum(axis=0), dy.sum(axis=0)

    def forward(self, x):
        weight, bias = self.weight, self.bias
        if self.training:
            self.calls += 1
            self.shift += 1
        y = x.data * weight.data + bias.data
        return Tensor.from_op(y, (x, weight, bias), lambda dy: self.backward(dy, x.data, weight.data))


def test_a_right_layer_passes():
    check_layer(Affine, (2, 3))
    check_layer(lambda: Affine(4), st.tuples(st.integers(1, 3), st.just(4)))


def broken(**methods):
    return type("Broken", (Affine,), methods)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        # the scale is 1 in a new layer: only a randomised one shows that it is missing
        (broken(backward=lambda self, dy, x, w: (dy, (dy * x).sum(0), dy.sum(0))), r"the input \(training mode\)"),
        (broken(backward=lambda self, dy, x, w: (dy * w, dy.sum(0), dy.sum(0))), r"weight \(training mode\)"),
        (broken(backward=lambda self, dy, x, w: (dy * w, (dy * x).sum(0), None)), "bias .*no gradient arrived"),
        (
            broken(backward=lambda self, dy, x, w: (dy * (w if self.training else 2), (dy * x).sum(0), dy.sum(0))),
            r"the input \(eval mode\)",
        ),
    ],
)
def test_wrong_gradients_of_layers_are_found(layer, message):
    with pytest.raises(GradcheckError, match=message):
        check_layer(layer, (2, 3))


def test_layers_that_write_where_they_must_not_are_found():
    class WritesInput(Affine):
        def forward(self, x):
            x.data[...] += 1
            return super().forward(x)

    class WritesGradient(Affine):
        def backward(self, dy, x, weight):
            dy *= weight
            return dy, (dy / weight * x).sum(axis=0), (dy / weight).sum(axis=0)

    class MovesInEval(Affine):
        def forward(self, x):
            self.shift += 0 if self.training else 1
            return super().forward(x)

    class CountsInEval(Affine):
        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    class FailsInEval(Affine):
        def forward(self, x):
            return super().forward(x) if self.training else None

    for seed in range(10):  # the seed decides the layout too: NumPy itself protects a read-only input
        with pytest.raises((GradcheckError, ValueError), match=r"fn modified the input|output array is read-only"):
            check_layer(WritesInput, (2, 3), seed=seed)
    with pytest.raises(GradcheckError, match="modified the gradient it was given"):
        check_layer(WritesGradient, (2, 3))
    with pytest.raises(AssertionError, match="eval mode changed shift of MovesInEval"):
        check_layer(MovesInEval, (2, 3))
    with pytest.raises(AssertionError, match="eval mode changed calls of CountsInEval"):
        check_layer(CountsInEval, (2, 3))
    with pytest.raises(GradcheckError, match="NoneType, expected a Tensor"):
        check_layer(FailsInEval, (2, 3))
    with pytest.raises(TypeError, match="returned a function, expected a Module"):
        check_layer(lambda: F.relu, (2, 3))


def test_without_randomising_a_forgotten_scale_of_one_is_missed():
    forgets_scale = broken(backward=lambda self, dy, x, w: (dy, (dy * x).sum(0), dy.sum(0)))
    check_layer(forgets_scale, (2, 3), randomize=False)  # the reason for randomize=True


def test_layers_with_state_and_randomness_are_made_pure():
    check_layer(lambda: nn.BatchNorm2d(3), (2, 3, 2, 3))
    check_layer(lambda: nn.Dropout(0.5), (4, 5))  # draws from the default generator
    check_layer(lambda: nn.Dropout(0.5, np.random.default_rng(1)), (4, 5))  # from its own


def test_a_parameter_used_twice_gets_the_sum_of_its_gradients():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    check_layer(Tied, (2, 3))


def test_integer_buffers_stay_as_they_are():
    class Shuffle(nn.Module):
        buffer_names = ("order",)

        def __init__(self):
            super().__init__()
            self.order = np.array([2, 0, 1])

        def forward(self, x):
            return x[:, self.order]

    check_layer(Shuffle, (2, 3))


def test_a_call_with_more_arguments_and_several_outputs():
    check_layer(lambda: nn.BatchNorm2d(3), (2, 3, 2, 3), call=lambda bn, x: (bn(x) + x, x * 2))


def test_without_hypothesis_the_error_says_how_to_install_it():
    code = "import sys; sys.modules['hypothesis'] = None; import minires; print('ok'); import minires.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n"
    assert "needs hypothesis; install it with: pip install hypothesis" in done.stderr


def test_the_default_generator_is_left_usable():
    before = default_generator()
    check_layer(lambda: nn.Dropout(0.5), (4, 5))
    assert default_generator() is before
