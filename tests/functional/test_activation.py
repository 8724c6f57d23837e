"""ReLU, softmax and dropout: gradients, and the conventions at their edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires as mr
import minires.functional as F
from minires import Tensor
from minires.testing import check_op, kink_free, kink_free_array, seeds, shapes


@given(x=kink_free(shapes(min_dims=0)))
def test_relu(xp, x):
    x = xp.asarray(x)
    xp.testing.assert_array_equal(F.relu(Tensor(x)).data, xp.where(x > 0, x, 0))
    check_op(F.relu, x)


def test_relu_at_0_has_gradient_0(xp):
    x = Tensor(xp.asarray([-1.0, 0.0, -0.0, 2.0]), requires_grad=True)
    F.relu(x).backward(xp.ones(4))
    assert x.grad.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@given(x=kink_free(shapes()), data=st.data())
def test_softmax(xp, name, x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    exponentials = np.exp(x)
    p = exponentials / exponentials.sum(axis=axis, keepdims=True)
    y = getattr(F, name)(Tensor(xp.asarray(x)), axis=axis)
    xp.testing.assert_allclose(y.data, p if name == "softmax" else np.log(p), rtol=1e-12, atol=1e-12)
    check_op(lambda x: getattr(F, name)(x, axis=axis), xp.asarray(x))


@given(x=kink_free(shapes(min_dims=2, max_dims=2)), shift=st.floats(-100, 100))
def test_softmax_does_not_see_a_shift_and_its_gradient_sums_to_0(xp, x, shift):
    x = Tensor(xp.asarray(x), requires_grad=True)
    dy = xp.asarray(kink_free_array(x.shape, 1))
    for op in (F.softmax, F.log_softmax):
        xp.testing.assert_allclose(op(x + shift).data, op(x).data, rtol=1e-9, atol=1e-9)
        x.zero_grad()
        op(x).backward(dy)
        xp.testing.assert_allclose(x.grad.sum(axis=1), 0, atol=1e-12)


def test_softmax_of_huge_logits(xp):
    x = Tensor(xp.asarray([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]]), requires_grad=True)
    assert F.softmax(x).data.tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
    assert F.log_softmax(x).data[0].tolist() == [0, -2e4, -1e4]
    F.log_softmax(x).backward(xp.ones((2, 3)))
    assert bool(xp.isfinite(x.grad).all())


@given(x=kink_free(shapes()), p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), seed=seeds())
def test_dropout(xp, x, p, seed):
    """With the generator put back before each call, dropout is a function, and linear."""
    check_op(lambda x: F.dropout(x, p, generator=np.random.default_rng(seed)), xp.asarray(x))
    ones = Tensor(xp.ones(x.shape), requires_grad=True)
    y = F.dropout(ones, p, generator=np.random.default_rng(seed))
    y.backward(xp.ones(x.shape))
    xp.testing.assert_array_equal(ones.grad, y.data)  # the gradient passes where the value did, scaled alike


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_statistics(p):
    n = 100_000
    y = F.dropout(Tensor(np.ones(n)), p, generator=np.random.default_rng(0)).data
    assert set(np.unique(y)) == {0, 1 / (1 - p)}
    # 5 standard deviations of a binomial proportion
    assert (y == 0).mean() == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5)
    assert y.mean() == pytest.approx(1, abs=5 * (p / (1 - p) / n) ** 0.5)


def test_dropout_of_all_or_nothing():
    x = Tensor(np.ones(5))
    assert F.dropout(x, 1.0).data.tolist() == [0] * 5
    assert F.dropout(x, 0.0) is x
    assert F.dropout(x, 0.5, training=False) is x


def test_dropout_draws_from_the_seeded_default_generator():
    def draw() -> list[float]:
        mr.manual_seed(5)
        return F.dropout(Tensor(np.ones(50))).data.tolist()

    assert draw() == draw()
    assert F.dropout(Tensor(np.ones(50))).data.tolist() != draw()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_dropout_errors(p):
    with pytest.raises(ValueError, match=f"dropout: p is {p}, expected a probability between 0 and 1"):
        F.dropout(Tensor(np.ones(3)), p)
