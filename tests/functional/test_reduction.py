"""Sum, mean and maximum over any axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor
from minires.testing import check_op, kink_free, kink_free_array, shapes

REDUCTIONS = {"sum": np.sum, "mean": np.mean, "max": np.max}


@st.composite
def arrays_and_axes(draw) -> tuple[np.ndarray, int | tuple[int, ...] | None]:
    x = draw(kink_free(shapes(min_dims=0)))
    if not x.ndim or draw(st.booleans()):
        return x, None
    axes = draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True))
    axes = tuple(a - x.ndim if draw(st.booleans()) else a for a in axes)  # from the end, too
    return x, axes[0] if len(axes) == 1 else axes


@pytest.mark.parametrize("name", REDUCTIONS)
@given(case=arrays_and_axes(), keepdims=st.booleans())
@example(case=(kink_free_array((2, 3)), 1), keepdims=False)  # whose gradient is not the same everywhere
def test_reductions(xp, name, case, keepdims):
    x, axis = case
    expected = REDUCTIONS[name](x, axis=axis, keepdims=keepdims)
    x = xp.asarray(x)
    y = getattr(F, name)(Tensor(x), axis=axis, keepdims=keepdims)
    assert y.shape == expected.shape
    xp.testing.assert_allclose(y.data, expected, rtol=1e-12, atol=1e-12)
    check_op(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), x)


def test_equal_maxima_share_the_gradient(xp):
    x = Tensor(xp.asarray([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    x.max(axis=1).backward(xp.asarray([1.0, 3.0]))
    assert x.grad.tolist() == [[0, 0.5, 0.5], [1, 1, 1]]
    x.zero_grad()
    x.max().backward()
    assert x.grad.tolist() == [[0, 0.5, 0.5], [0, 0, 0]]


def test_an_axis_may_be_an_integer_of_numpy():
    x = Tensor(np.ones((2, 3)))
    assert x.sum(axis=np.int64(0)).shape == x.mean(axis=(np.int64(-2),)).shape == (3,)


def test_the_gradient_of_max_keeps_float32(xp):
    x = Tensor(xp.asarray(kink_free_array((3, 4)), dtype=np.float32), requires_grad=True)
    x.max(axis=0).backward(xp.ones(4))
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.sum(axis=2), r"axis 2 is out of range for shape \(2, 3\)"),
        (lambda x: x.max(axis=(0, -3)), r"axis -3 is out of range for shape \(2, 3\)"),
        (lambda x: x[:0].mean(), "there is nothing to average"),
        (lambda x: x[:0].mean(axis=0), r"nothing to average over axis 0 of shape \(0, 3\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make(Tensor(np.ones((2, 3))))
