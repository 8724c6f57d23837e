"""The operations that no ResNet needs: tanh, sigmoid, clip, where, stack, var, mse_loss, interpolate, ..."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor
from minires.testing import check_op, image_shapes, kink_free, kink_free_array, seeds, shapes

DEFINITIONS = {"tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "abs": np.abs}


@pytest.mark.parametrize("name", DEFINITIONS)
@given(x=kink_free(shapes(min_dims=0)))
def test_elementwise(xp, name, x):
    y = getattr(F, name)(Tensor(xp.asarray(x)))
    xp.testing.assert_allclose(y.data, DEFINITIONS[name](x), rtol=1e-12, atol=1e-15)
    check_op(getattr(F, name), xp.asarray(x))


def test_the_gradient_of_abs_at_0_is_0(xp):
    x = Tensor(xp.asarray([-1.0, 0.0, 2.0]), requires_grad=True)
    abs(x).backward(xp.ones(3))
    assert x.grad.tolist() == [-1, 0, 1]


def test_sigmoid_and_tanh_far_out(xp):
    x = Tensor(xp.asarray([-1000.0, -100.0, 0.0, 1000.0], dtype="float32"), requires_grad=True)
    y = F.sigmoid(x)
    assert y.data.tolist()[2:] == [0.5, 1]
    assert 0 < y.data[1] < 1e-43  # not 0, as 1 - 1 / (1 + exp(-100)) would be
    (y + F.tanh(x)).sum().backward()
    assert bool(xp.isfinite(x.grad).all())


@pytest.mark.parametrize(("low", "high"), [(-0.4, 0.6), (None, 0.1), (0.1, None), (None, None)])
@given(x=kink_free(shapes(min_dims=0)))
def test_clip(xp, low, high, x):
    # No value may come so close to a limit that the finite differences reach over the kink there.
    x = x + sum(2e-3 * (np.abs(x - limit) < 1e-3) for limit in (low, high) if limit is not None)
    expected = np.minimum(np.maximum(x, -np.inf if low is None else low), np.inf if high is None else high)
    xp.testing.assert_array_equal(F.clip(Tensor(xp.asarray(x)), low, high).data, expected)
    check_op(lambda x: x.clip(low, high), xp.asarray(x))


def test_clip_keeps_float32():
    assert Tensor(np.float32([1, 2])).clip(np.float64(0), np.float64(1)).dtype == np.float32


def test_clip_at_its_limits_as_pytorch_does(xp):
    x = Tensor(xp.asarray([-2.0, -1.0, 0.0, 1.0, 2.0]), requires_grad=True)
    x.clip(-1, 1).backward(xp.ones(5))
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(ValueError, match="clip: low is 2 and high 1, expected low <= high"):
        x.clip(2, 1)


@given(shape=shapes(), seed=seeds())
def test_where(xp, shape, seed):
    rng = np.random.default_rng(seed)
    # Broadcast both ways: the condition along the first axis, a along the last.
    condition = rng.random(shape[1:]) < 0.5
    a, b = kink_free_array((*shape[:-1], 1), rng), kink_free_array(shape, rng)
    y = F.where(xp.asarray(condition), Tensor(xp.asarray(a)), Tensor(xp.asarray(b)))
    xp.testing.assert_array_equal(y.data, np.where(condition, a, b))
    check_op(lambda a, b: F.where(xp.asarray(condition), a, b), xp.asarray(a), xp.asarray(b))


def test_what_is_not_chosen_gets_no_gradient(xp):
    """Not even NaN, as 0 * inf would give."""
    x = Tensor(xp.asarray([0.0, 4.0]), requires_grad=True)
    positive = x > 0
    F.where(positive, F.log(F.where(positive, x, 1.0)), 0.0).sum().backward()
    assert x.grad.tolist() == [0, 0.25]
    y = Tensor(xp.asarray([1.0, 1.0]), requires_grad=True)
    F.where(xp.asarray([True, False]), y, 5).backward(xp.asarray([1.0, np.inf]))
    assert y.grad.tolist() == [1, 0]


def test_where_needs_booleans_and_a_tensor():
    x = Tensor([1.0, 2.0])
    assert F.where(True, x, 0).data.tolist() == [1, 2]
    with pytest.raises(TypeError, match="where: condition has dtype float32, expected bool, such as x > 0"):
        F.where(x, x, x)
    with pytest.raises(TypeError, match="where: got float and ndarray, expected a Tensor as one of them"):
        F.where(x > 0, 1.0, np.ones(2))


@given(shape=shapes(max_side=2), seed=seeds())
def test_squeeze(xp, shape, seed):
    x = kink_free_array(shape, seed)
    assert F.squeeze(Tensor(x)).shape == np.squeeze(x).shape
    check_op(F.squeeze, xp.asarray(x))
    for axis in range(-x.ndim, x.ndim):
        if x.shape[axis] == 1:
            assert Tensor(x).squeeze(axis).shape == np.squeeze(x, axis).shape
        else:
            with pytest.raises(ValueError, match=f"squeeze: axis {axis} of shape"):
                Tensor(x).squeeze(axis)


def test_squeeze_several_axes():
    x = Tensor(np.zeros((1, 2, 1, 1)))
    assert x.squeeze((0, -1)).shape == (2, 1)
    with pytest.raises(ValueError, match="axis 7 is out of range"):
        x.squeeze(7)


@given(shape=shapes(min_dims=0, max_dims=3), count=st.integers(1, 3), seed=seeds(), data=st.data())
def test_stack(xp, shape, count, seed, data):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    arrays = [kink_free_array(shape, seed + i) for i in range(count)]
    y = F.stack([Tensor(xp.asarray(a)) for a in arrays], axis)
    xp.testing.assert_array_equal(y.data, np.stack(arrays, axis))
    check_op(lambda *tensors: F.stack(tensors, axis), *map(xp.asarray, arrays))


def test_what_cannot_be_stacked():
    x = Tensor(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="stack: expected at least one tensor, got none"):
        F.stack([])
    with pytest.raises(ValueError, match=r"stack: tensors have shapes \(2, 3\), \(3,\), expected one shape"):
        F.stack([x, x[0]])
    with pytest.raises(ValueError, match="stack: axis 3 is out of range for 3 axes"):
        F.stack([x, x], 3)
    with pytest.raises(TypeError, match="stack: input is of type ndarray"):
        F.stack([np.zeros(2)])
    for join in (F.stack, F.concatenate):  # a generator, and a tensor, whose rows are its parts
        assert join(part for part in (x, x)).shape[0] in (2, 4)
        assert join(x).data.size == 6


@pytest.mark.parametrize("ddof", [0, 1])
@given(x=kink_free(shapes()), keepdims=st.booleans(), data=st.data())
def test_var(xp, ddof, x, keepdims, data):
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    count = x.size if axis is None else x.shape[axis]
    if count <= ddof:
        with pytest.raises(ValueError, match=f"var: {count} values over axis"):
            Tensor(x).var(axis, keepdims, ddof)
        return
    y = Tensor(xp.asarray(x)).var(axis, keepdims, ddof)
    xp.testing.assert_allclose(y.data, x.var(axis=axis, keepdims=keepdims, ddof=ddof), rtol=1e-10, atol=1e-14)
    check_op(lambda x: x.var(axis, keepdims, ddof), xp.asarray(x))


def test_var_of_an_empty_batch():
    assert Tensor(np.zeros((0, 5))).var(axis=1).shape == (0,)


@given(x=kink_free(shapes()), data=st.data())
def test_argmax(xp, x, data):
    axis = data.draw(st.none() | st.integers(-x.ndim, x.ndim - 1))
    found = Tensor(xp.asarray(x), requires_grad=True).argmax(axis)
    xp.testing.assert_array_equal(found.data, x.argmax(axis))
    assert found.dtype == np.int64
    assert not found.requires_grad


@given(shape=shapes(min_dims=0), seed=seeds())
def test_mse_loss(xp, shape, seed):
    a, b = kink_free_array(shape, seed), kink_free_array(shape, seed + 1)
    loss = F.mse_loss(Tensor(xp.asarray(a)), xp.asarray(b))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(((a - b) ** 2).mean())
    check_op(F.mse_loss, xp.asarray(a), xp.asarray(b))


def test_mse_loss_does_not_broadcast():
    """(N, 1) - (N,) is (N, N): the loss would be of all pairs."""
    match = r"mse_loss: prediction has shape \(3, 1\), target \(3,\), expected the same"
    with pytest.raises(ValueError, match=match):
        F.mse_loss(Tensor(np.zeros((3, 1))), np.zeros(3))
    with pytest.raises(ValueError, match="mean: there is nothing to average"):
        F.mse_loss(Tensor(np.zeros((0, 1))), np.zeros((0, 1)))


@given(shape=image_shapes(), scale=st.tuples(st.integers(1, 3), st.integers(1, 3)), seed=seeds())
def test_interpolate(xp, shape, scale, seed):
    x = kink_free_array(shape, seed)
    y = F.interpolate(Tensor(xp.asarray(x)), scale_factor=scale)
    xp.testing.assert_array_equal(y.data, x.repeat(scale[0], axis=1).repeat(scale[1], axis=2))
    check_op(lambda x: F.interpolate(x, scale_factor=scale), xp.asarray(x))


def test_what_cannot_be_enlarged():
    x = Tensor(np.zeros((1, 2, 2, 3)))
    with pytest.raises(ValueError, match="interpolate: mode is 'bicubic', expected 'nearest'"):
        F.interpolate(x, 2, mode="bicubic")
    with pytest.raises(ValueError, match=r"scale_factor is 1.5, expected an integer >= 1"):
        F.interpolate(x, 1.5)
    with pytest.raises(ValueError, match=r"interpolate: input has shape \(2, 2, 3\), expected \(N,H,W,C\)"):
        F.interpolate(x[0], 2)
    assert F.interpolate(Tensor(np.zeros((0, 2, 2, 3))), 2).shape == (0, 4, 4, 3)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "interpolate", "mse_loss"])
def test_integers_are_refused(name):
    others = {"interpolate": (2,), "mse_loss": (np.ones((1, 2, 2, 1)),)}.get(name, ())
    with pytest.raises(TypeError, match=f"{name}: input has dtype uint8, expected floating-point"):
        getattr(F, name)(Tensor(np.ones((1, 2, 2, 1), np.uint8)), *others)
