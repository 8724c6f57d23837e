"""Convolution: gradients over all geometries, and what must hold for any convolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor
from minires.testing import ConvGeometry, check_op, conv_geometries, kink_free, kink_free_array, seeds


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ConvGeometry, list[np.ndarray]]:
    """A geometry, and input, weight and (half of the time) bias in any layout."""
    geometry = draw(conv_geometries())
    shapes = [geometry.x_shape, geometry.weight_shape]
    if draw(st.booleans()):
        shapes.append(geometry.weight_shape[3:])
    return geometry, [draw(kink_free(shape)) for shape in shapes]


def fixed(x_shape, weight_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    geometry = ConvGeometry(x_shape, weight_shape, stride, padding, dilation, groups)
    return geometry, [kink_free_array(x_shape, 0), kink_free_array(weight_shape, 1), np.ones(weight_shape[3])]


@given(case=convolutions())
@example(case=fixed((1, 2, 3, 2), (1, 1, 2, 2)))  # these few are small enough for the full Jacobian
@example(case=fixed((1, 4, 3, 1), (3, 2, 1, 2), stride=(2, 1), padding=(1, 0)))
@example(case=fixed((1, 3, 4, 2), (1, 2, 1, 2), padding=(0, 1), dilation=(1, 2), groups=2))
@example(case=fixed((2, 9, 8, 3), (7, 7, 3, 2), stride=(2, 2), padding=(3, 3)))  # the stem of ResNet-50
@example(case=fixed((2, 5, 6, 4), (1, 1, 4, 3), stride=(2, 2)))  # its shortcut
def test_gradients(xp, case):
    geometry, arrays = case
    check_op(lambda *inputs: F.conv2d(*inputs, **geometry.options), *map(xp.asarray, arrays))


@given(case=convolutions(), seed=seeds())
def test_convolution_is_linear(xp, case, seed):
    """conv(2a + 3b) = 2 conv(a) + 3 conv(b), in the input and in the weight."""
    geometry, (x, weight, *_) = case
    other_x, other_weight = kink_free_array(x.shape, seed), kink_free_array(weight.shape, seed)
    x, weight, other_x, other_weight = (Tensor(xp.asarray(a)) for a in (x, weight, other_x, other_weight))

    def conv(x, weight):
        return F.conv2d(x, weight, **geometry.options).data

    tolerance = {"rtol": 1e-10, "atol": 1e-10}
    both = 2 * conv(x, weight) + 3 * conv(other_x, weight)
    xp.testing.assert_allclose(conv(2 * x + 3 * other_x, weight), both, **tolerance)
    both = 2 * conv(x, weight) + 3 * conv(x, other_weight)
    xp.testing.assert_allclose(conv(x, 2 * weight + 3 * other_weight), both, **tolerance)


@given(case=convolutions(), down=st.integers(0, 2), right=st.integers(0, 2))
def test_convolution_is_translation_equivariant(xp, case, down, right):
    """Moving the input by whole strides moves the output: convolution sees no absolute position."""
    geometry, (x, weight, *_) = case
    (sh, sw), (ph, pw) = geometry.stride, geometry.padding
    options = {**geometry.options, "padding": 0}
    wide = xp.pad(xp.asarray(x), ((0, 0), (ph, ph + 2 * sh), (pw, pw + 2 * sw), (0, 0)))
    moved = xp.zeros_like(wide)
    h, w = wide.shape[1] - down * sh, wide.shape[2] - right * sw
    moved[:, down * sh :, right * sw :] = wide[:, :h, :w]
    weight = Tensor(xp.asarray(weight))
    y, y_moved = (F.conv2d(Tensor(a), weight, **options).data for a in (wide, moved))
    ho, wo = y.shape[1] - down, y.shape[2] - right
    xp.testing.assert_allclose(y_moved[:, down:, right:], y[:, :ho, :wo], rtol=1e-12, atol=1e-12)


@given(case=convolutions())
def test_groups_are_separate_convolutions(xp, case):
    geometry, (x, weight, *_) = case
    x, weight = Tensor(xp.asarray(x)), Tensor(xp.asarray(weight))
    c, o = weight.shape[2], weight.shape[3] // geometry.groups
    options = {**geometry.options, "groups": 1}
    parts = [
        F.conv2d(x[..., g * c : (g + 1) * c], weight[..., g * o : (g + 1) * o], **options)
        for g in range(geometry.groups)
    ]
    whole = F.conv2d(x, weight, **geometry.options)
    xp.testing.assert_allclose(whole.data, F.concatenate(parts, axis=3).data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", ["x", "weight"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_constant_gets_no_gradient_and_changes_no_other(wanted, kernel):
    x_data, w_data = kink_free_array((2, 4, 5, 2)), kink_free_array((kernel, kernel, 2, 3), 1)
    x, weight = Tensor(x_data, requires_grad=True), Tensor(w_data, requires_grad=True)
    dy = kink_free_array((2, 5 - kernel, 6 - kernel, 3), 2)
    F.conv2d(x, weight).backward(dy)
    some_x, some_weight = Tensor(x_data, wanted == "x"), Tensor(w_data, wanted == "weight")
    F.conv2d(some_x, some_weight).backward(dy)
    got, absent, expected = (some_x, some_weight, x) if wanted == "x" else (some_weight, some_x, weight)
    assert absent.grad is None
    np.testing.assert_array_equal(got.grad, expected.grad)


def test_numbers_stand_for_both_directions():
    x, weight = Tensor(kink_free_array((1, 7, 6, 2))), Tensor(kink_free_array((3, 3, 2, 2), 1))
    np.testing.assert_array_equal(
        F.conv2d(x, weight, stride=2, padding=1, dilation=2).data,
        F.conv2d(x, weight, stride=(2, 2), padding=(1, 1), dilation=(2, 2)).data,
    )


@pytest.mark.parametrize("x_shape", [(2, 8, 8, 4), (2, 8, 7, 4)])
def test_the_error_for_wrong_channels_gives_both_numbers(x_shape):
    with pytest.raises(ValueError, match=r"conv2d: input has 4 channels \(N,H,W,C\)=\(2,8,.,4\), the weight expects 3"):
        F.conv2d(Tensor(np.ones(x_shape)), Tensor(np.ones((3, 3, 3, 5))))


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "message"),
    [
        (
            (2, 3, 8, 8),
            (3, 3, 3, 5),
            {},
            r"looks like \(N,C,H,W\): minires keeps channels last, use x.transpose\(0, 2,",
        ),
        ((8, 8, 3), (3, 3, 3, 5), {}, r"input has shape \(8, 8, 3\) .* expected \(N,H,W,C\)"),
        ((2, 8, 8, 3), (3, 3, 3), {}, r"the weight \(3, 3, 3\), expected"),
        ((2, 2, 8, 3), (3, 3, 3, 5), {}, "a 3x3 kernel with dilation .* does not fit into the input 2x8"),
        ((2, 4, 8, 3), (3, 3, 3, 5), {"dilation": 2}, "does not fit"),
        ((2, 8, 8, 4), (3, 3, 2, 5), {"groups": 2}, "groups is 2, expected a divisor of the weight's 5 output"),
        ((2, 8, 8, 4), (3, 3, 2, 5), {"groups": 0}, "groups is 0"),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"stride": 0}, "stride is 0, expected an integer >= 1"),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"stride": 1.5}, "stride is 1.5, expected an integer"),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"padding": (0, -1)}, r"padding is \(0, -1\), expected an integer >= 0"),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"padding": (1, 1, 1)}, "padding is"),
        ((2, 8, 8, 3), (3, 3, 3, 5), {"bias": Tensor([1.0])}, r"bias has shape \(1,\), expected \(5,\)"),
    ],
)
def test_errors(x_shape, weight_shape, options, message):
    with pytest.raises(ValueError, match=message):
        F.conv2d(Tensor(np.ones(x_shape)), Tensor(np.ones(weight_shape)), **options)
