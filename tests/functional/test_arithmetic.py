"""Elementwise arithmetic and the matrix product: gradients over all broadcasting shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minires.functional as F
from minires import Tensor
from minires.functional.arithmetic import as_tensor, unbroadcast
from minires.testing import check_op, kink_free, kink_free_array, shapes

BINARY = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}
UNARY = {"negative": np.negative, "exp": np.exp, "log": np.log, "sqrt": np.sqrt}
POSITIVE = ("log", "sqrt")


@st.composite
def broadcasting(draw: st.DrawFn, **options) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays whose shapes broadcast (or fit `signature`), in any layout."""
    options = {"max_dims": 3, "max_side": 3, **options}
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, **options) if "signature" not in options
                 else hnp.mutually_broadcastable_shapes(**options))  # fmt: skip
    return tuple(draw(kink_free(shape)) for shape in drawn.input_shapes)


@pytest.mark.parametrize("name", BINARY)
@given(arrays=broadcasting())
@example(arrays=(kink_free_array((3, 1)), kink_free_array((1, 4), 1)))
@example(arrays=(kink_free_array((2, 3)), kink_free_array((), 1)))
def test_binary(xp, name, arrays):
    a, b = map(xp.asarray, arrays)
    op = getattr(F, name)
    xp.testing.assert_allclose(op(Tensor(a), Tensor(b)).data, BINARY[name](*arrays), rtol=1e-14)
    check_op(op, a, b)


@pytest.mark.parametrize("name", UNARY)
@given(x=kink_free(shapes(min_dims=0)))
def test_unary(xp, name, x):
    x = abs(x) if name in POSITIVE else x
    xp.testing.assert_allclose(getattr(F, name)(Tensor(xp.asarray(x))).data, UNARY[name](x), rtol=1e-14)
    check_op(getattr(F, name), xp.asarray(x))


@pytest.mark.parametrize("exponent", [-2, -1, 0, 1, 2, 3, 0.5, -1.5])
@given(x=kink_free(shapes(max_side=3)))
def test_power(xp, exponent, x):
    x = xp.asarray(abs(x) if isinstance(exponent, float) else x)
    xp.testing.assert_allclose((Tensor(x) ** exponent).data, x ** float(exponent), rtol=1e-12)
    check_op(lambda x: x**exponent, x)


def test_power_0_and_1_have_finite_gradients_at_0(xp):
    for exponent, expected in [(0, 0), (1, 1), (2, 0)]:
        x = Tensor(xp.zeros(2), requires_grad=True)
        (x**exponent).backward(xp.ones(2))
        assert x.grad.tolist() == [expected] * 2


@given(arrays=broadcasting(signature=np.matmul.signature, max_dims=2))
@example(arrays=(kink_free_array((3,)), kink_free_array((3,), 1)))
@example(arrays=(kink_free_array((2, 1, 2, 3)), kink_free_array((3, 3, 2), 1)))
@example(arrays=(kink_free_array((3,)), kink_free_array((2, 3, 2), 1)))
@example(arrays=(kink_free_array((2, 2, 3)), kink_free_array((3,), 1)))
def test_matmul(xp, arrays):
    a, b = map(xp.asarray, arrays)
    xp.testing.assert_allclose((Tensor(a) @ Tensor(b)).data, np.matmul(*arrays), rtol=1e-12, atol=1e-12)
    check_op(F.matmul, a, b)


@pytest.mark.parametrize("op", [lambda x: 2 - x, lambda x: 2 / x, lambda x: 2 + x, lambda x: 2 * x, lambda x: x - 2])
def test_numbers_on_either_side(xp, op):
    x = xp.asarray(kink_free_array((2, 3)))
    xp.testing.assert_allclose(op(Tensor(x)).data, op(x))
    check_op(op, x)


@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_unbroadcast_is_the_transpose_of_broadcasting(xp, shapes):
    """<broadcast(x), c> = <x, unbroadcast(c)> in integers, without tolerance."""
    rng = np.random.default_rng(0)
    shape = shapes.input_shapes[0]
    x, c = (xp.asarray(rng.integers(-9, 10, s)) for s in (shape, shapes.result_shape))
    back = unbroadcast(c, shape)
    assert back.shape == shape
    assert int((xp.broadcast_to(x, c.shape) * c).sum()) == int((x * back).sum())


def test_unbroadcast_of_the_same_shape_copies_nothing():
    gradient = np.ones((2, 3))
    assert unbroadcast(gradient, (2, 3)) is gradient


def test_numbers_take_the_dtype_of_the_tensor():
    x = Tensor(np.ones(2, np.float32))
    assert as_tensor(2.5, x).dtype == as_tensor(np.float64(2.5), x).dtype == np.float32
    integers = Tensor(np.ones(2, np.int64))
    assert (integers * 2).dtype == np.int64
    booleans = Tensor(np.array([True, False]))
    assert (x ** np.float64(2)).dtype == np.float32
    assert (booleans * 3).data.tolist() == [3, 0]
    assert (booleans + 0.5).data.tolist() == [1.5, 0.5]
    assert (integers * 2.5).data.tolist() == [2.5, 2.5]


def test_grad_of_f_plus_f_is_twice_grad_of_f(xp):
    def gradient(fn):
        x = Tensor(xp.asarray(kink_free_array((2, 3))), requires_grad=True)
        fn(x).backward(xp.asarray(kink_free_array((2, 3), 1)))
        return x.grad

    def f(x):
        return x.exp() * x

    xp.testing.assert_allclose(gradient(lambda x: f(x) + f(x)), 2 * gradient(f), rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: x**x, TypeError, "power: the exponent must be a number"),
        (lambda x: x ** np.ones(3), TypeError, "power: the exponent must be a number"),
        (lambda x: x @ 2.0, ValueError, r"matmul: a has shape \(3,\) and b \(\), expected at least one axis each"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make(Tensor([1.0, 2.0, 3.0], requires_grad=True))
