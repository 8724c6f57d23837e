"""Pooling: gradients over all geometries, padding and ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor
from minires.testing import PoolGeometry, check_op, image_shapes, kink_free, kink_free_array, pool_geometries


@st.composite
def poolings(draw: st.DrawFn) -> tuple[PoolGeometry, np.ndarray]:
    geometry = draw(pool_geometries())
    return geometry, draw(kink_free(geometry.x_shape))


OVERLAPPING = PoolGeometry((1, 5, 4, 1), (3, 3), (2, 2), (1, 1))  # as in the stem of ResNet, full Jacobian


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@given(case=poolings())
@example(case=(OVERLAPPING, kink_free_array(OVERLAPPING.x_shape)))
def test_gradients(xp, name, case):
    geometry, x = case
    check_op(lambda x: getattr(F, name)(x, **geometry.options), xp.asarray(x))


@given(x=image_shapes().flatmap(kink_free))
def test_global_average(xp, x):
    x = xp.asarray(x)
    xp.testing.assert_allclose(F.global_avg_pool2d(Tensor(x)).data, x.mean(axis=(1, 2)), rtol=1e-12, atol=1e-15)
    check_op(F.global_avg_pool2d, x)


@given(case=poolings())
def test_average_pooling_is_a_convolution_with_a_constant_kernel(xp, case):
    geometry, x = case
    (kh, kw), channels = geometry.kernel_size, x.shape[3]
    weight = Tensor(xp.full((kh, kw, 1, channels), 1 / (kh * kw)))
    pooled, convolved = Tensor(xp.asarray(x), requires_grad=True), Tensor(xp.asarray(x), requires_grad=True)
    y = F.avg_pool2d(pooled, **geometry.options)
    z = F.conv2d(convolved, weight, stride=geometry.stride, padding=geometry.padding, groups=channels)
    xp.testing.assert_allclose(y.data, z.data, rtol=1e-12, atol=1e-14)
    dy = xp.asarray(kink_free_array(y.shape, 1))
    y.backward(dy)
    z.backward(dy)
    xp.testing.assert_allclose(pooled.grad, convolved.grad, rtol=1e-12, atol=1e-14)


@given(case=poolings())
def test_the_gradient_of_max_pooling_only_moves_numbers(xp, case):
    """Each output's gradient arrives whole, at one element: in integers the sums are equal."""
    geometry, x = case
    x = Tensor(xp.asarray(x), requires_grad=True)
    y = F.max_pool2d(x, **geometry.options)
    dy = xp.asarray(np.random.default_rng(0).integers(1, 10, y.shape).astype(np.float64))
    y.backward(dy)
    assert x.grad.sum() == dy.sum()
    assert int((x.grad > 0).sum()) <= y.size
    assert set(y.data.ravel().tolist()) == set(x.data[x.grad > 0].ravel().tolist())


def test_the_first_of_equal_maxima_gets_the_gradient(xp):
    x = Tensor(xp.ones((1, 4, 4, 1)), requires_grad=True)
    F.max_pool2d(x, 2).backward(xp.asarray([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1))
    assert x.grad[0, :, :, 0].tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]
    # row by row: of the two maxima in one window, the upper right one comes before the lower left one
    x = Tensor(xp.asarray([[0.0, 1], [1, 0]]).reshape(1, 2, 2, 1), requires_grad=True)
    F.max_pool2d(x, 2).backward(xp.ones((1, 1, 1, 1)))
    assert x.grad[0, :, :, 0].tolist() == [[0, 1], [0, 0]]
    # overlapping windows with equal values: each window decides for itself
    x = Tensor(xp.ones((1, 1, 3, 1)), requires_grad=True)
    F.max_pool2d(x, (1, 2), stride=1).backward(xp.asarray([1.0, 10]).reshape(1, 1, 2, 1))
    assert x.grad.ravel().tolist() == [1, 10, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_padding_never_wins_a_maximum(xp, dtype):
    x = Tensor(xp.full((1, 3, 3, 2), -5.0, dtype=dtype), requires_grad=True)
    y = F.max_pool2d(x, 3, stride=2, padding=1)
    assert (y.data == -5).all()
    y.backward(xp.ones(y.shape))
    assert x.grad[0, :, :, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_padding_counts_as_zeros_in_an_average(xp):
    y = F.avg_pool2d(Tensor(xp.ones((1, 2, 2, 1))), 2, stride=2, padding=1)
    assert y.data[0, :, :, 0].tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_the_stride_is_the_window_by_default():
    x = Tensor(np.arange(12.0).reshape(1, 2, 6, 1))
    assert F.max_pool2d(x, (2, 3)).data.ravel().tolist() == [8, 11]
    assert F.avg_pool2d(x, (2, 3)).data.ravel().tolist() == [4, 7]


@pytest.mark.parametrize("op", [F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8, 3), {"kernel_size": 2}, r"input has shape \(8, 8, 3\), expected \(N,H,W,C\)"),
        ((1, 8, 8, 3), {"kernel_size": 3, "padding": 2}, r"padding \(2, 2\) is more than half of kernel_size \(3, 3\)"),
        ((1, 2, 8, 3), {"kernel_size": 3}, r"a window of \(3, 3\) does not fit into the input 2x8 padded by \(0, 0\)"),
        ((1, 8, 8, 3), {"kernel_size": 0}, "kernel_size is 0, expected an integer >= 1"),
        ((1, 8, 8, 3), {"kernel_size": 2, "stride": 0}, "stride is 0"),
        ((1, 8, 8, 3), {"kernel_size": 2, "padding": -1}, "padding is -1"),
    ],
)
def test_errors(op, shape, options, message):
    with pytest.raises(ValueError, match=message):
        op(Tensor(np.ones(shape)), **options)


def test_the_error_of_global_average():
    with pytest.raises(ValueError, match=r"global_avg_pool2d: input has shape \(2, 3\), expected \(N,H,W,C\)"):
        F.global_avg_pool2d(Tensor(np.ones((2, 3))))
