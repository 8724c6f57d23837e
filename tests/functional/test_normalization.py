"""Batch normalisation: gradients in both modes, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor, gradcheck
from minires.testing import check_op, image_shapes, kink_free, kink_free_array, seeds, shapes

EPS = 1e-5


def normalized(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return (x - mean) / np.sqrt(var + EPS)


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axes = tuple(range(x.ndim - 1))
    return x.mean(axis=axes), x.var(axis=axes)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """x, weight, bias, running_mean, running_var."""
    x = draw(kink_free(st.one_of(image_shapes(), shapes(min_dims=2, max_dims=3))))
    assume(x.size >= 2 * x.shape[-1])
    seed, c = draw(seeds()), x.shape[-1:]
    return {
        "x": x,
        "weight": kink_free_array(c, seed),
        "bias": kink_free_array(c, seed + 3),
        "running_mean": kink_free_array(c, seed + 1),
        "running_var": abs(kink_free_array(c, seed + 2)) + 0.1,
    }


def batch_norm(case, xp, training):
    """(fn, its float arguments): batch_norm as a pure function; running statistics are copied for each call."""
    running = xp.asarray(case["running_mean"]), xp.asarray(case["running_var"])

    def fn(x, weight, bias):
        mean, var = (r.astype(x.dtype) for r in running)
        return F.batch_norm(x, weight, bias, mean, var, training, eps=EPS)

    return fn, [xp.asarray(case[name]) for name in ("x", "weight", "bias")]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@given(data=st.data())
def test_gradients(xp, training, data):
    fn, arrays = batch_norm(data.draw(cases()), xp, training)
    check_op(fn, *arrays)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@given(data=st.data())
def test_values(xp, training, data):
    case = data.draw(cases())
    fn, arrays = batch_norm(case, xp, training)
    mean, var = statistics(case["x"]) if training else (case["running_mean"], case["running_var"])
    expected = normalized(case["x"], mean, var) * case["weight"] + case["bias"]
    xp.testing.assert_allclose(fn(*map(Tensor, arrays)).data, expected, rtol=1e-10, atol=1e-10)


@given(data=st.data())
def test_input_gradient_sums_to_0_and_is_orthogonal_to_the_normalized_input(xp, data):
    """Outputs do not see a shift or (but for eps) a scaling of the input, so the gradient has no part along them."""
    case = data.draw(cases())
    fn, arrays = batch_norm(case, xp, training=True)
    x, weight, bias = (Tensor(a, requires_grad=True) for a in arrays)
    fn(x, weight, bias).backward(xp.asarray(kink_free_array(x.shape, 1)))
    dx = np.asarray(x.grad.tolist()).reshape(-1, x.shape[-1])  # (M, C)
    mean, var = statistics(case["x"])
    x_hat = normalized(case["x"], mean, var).reshape(dx.shape)
    scale = np.abs(case["weight"]) / np.sqrt(var + EPS) * len(dx)  # (C,)
    assert (abs(dx.sum(axis=0)) <= 1e-12 * scale).all()
    # <dx, x̂> = weight / std * <dy, x̂> * eps / (var + eps): 0 but for eps
    bound = scale * 4 * np.abs(x_hat).max() * EPS / (var + EPS)
    assert (abs((dx * x_hat).sum(axis=0)) <= bound + 1e-12 * scale).all()


def test_running_statistics_move_towards_the_batch(xp):
    x = kink_free_array((2, 3, 4, 2))
    mean, var = xp.asarray([1.0, 2.0]), xp.asarray([3.0, 4.0])
    ones = Tensor(xp.ones(2))
    F.batch_norm(Tensor(xp.asarray(x)), ones, ones, mean, var, training=True, momentum=0.25)
    m = 24  # positions; the running variance is the unbiased one
    xp.testing.assert_allclose(mean, 0.75 * np.array([1, 2]) + 0.25 * x.mean((0, 1, 2)), rtol=1e-12)
    xp.testing.assert_allclose(var, 0.75 * np.array([3, 4]) + 0.25 * x.var((0, 1, 2)) * m / (m - 1), rtol=1e-12)


def test_the_counter_counts_the_batches_of_training(xp):
    x, one, count = Tensor(xp.ones((4, 2))), Tensor(xp.ones(2)), xp.asarray(0)
    for training in (True, False, True):
        F.batch_norm(x, one, one, xp.zeros(2), xp.ones(2), training, num_batches_tracked=count)
    assert int(count) == 2


def test_eval_leaves_running_statistics_alone_and_keeps_its_own_copy():
    x = Tensor(kink_free_array((4, 2)), requires_grad=True)
    mean, var, one = np.zeros(2), np.ones(2), Tensor(np.ones(2))
    y = F.batch_norm(x, one, one, mean, var, training=False)
    assert mean.tolist() == [0, 0]
    assert var.tolist() == [1, 1]
    var[...] = 100  # a training step between forward and backward
    y.backward(np.ones((4, 2)))
    np.testing.assert_allclose(x.grad, 1 / np.sqrt(1 + EPS))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_0_keeps_and_1_replaces(momentum):
    x, one = Tensor(kink_free_array((4, 2))), Tensor(np.ones(2))
    mean, var = np.full(2, 7.0), np.full(2, 8.0)
    F.batch_norm(x, one, one, mean, var, training=True, momentum=momentum)
    expected = (x.data.mean(0), x.data.var(0, ddof=1)) if momentum else (7, 8)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(var, expected[1], rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e3])
def test_a_constant_input_gives_the_bias_and_finite_gradients(xp, value):
    x = xp.full((2, 2, 3, 2), value)
    weight, bias = xp.asarray([2.0, -3.0]), xp.asarray([0.5, -0.5])

    def fn(x, weight, bias):
        return F.batch_norm(x, weight, bias, xp.zeros(2), xp.ones(2), training=True)

    y = fn(Tensor(x), Tensor(weight), Tensor(bias))
    xp.testing.assert_allclose(y.data, xp.broadcast_to(bias, x.shape), atol=1e-9)
    if value < 10:  # x = 1000 has too few digits left behind the point for a step of 1e-6 and 1 / std = 300
        gradcheck(fn, x, weight, bias)
    leaf = Tensor(x.astype(np.float32), requires_grad=True)
    y = fn(leaf, Tensor(weight.astype(np.float32)), Tensor(bias.astype(np.float32)))
    # In float32 the mean may be off by a few units in the last place, and 1 / sqrt(eps) = 316 blows that up.
    few_ulps = 4 * float(np.spacing(np.float32(value)))
    assert float(abs(y.data - bias).max()) <= 3 * few_ulps / EPS**0.5 + 1e-6
    y.backward(xp.asarray(kink_free_array(x.shape, 1)))
    assert bool(xp.isfinite(leaf.grad).all())


def test_one_value_per_channel_is_an_error_in_training_only(xp):
    x, weight = xp.asarray(kink_free_array((1, 1, 1, 3))), xp.asarray(kink_free_array((3,), 1))

    def fn(x, weight, bias):
        return F.batch_norm(x, weight, bias, xp.zeros(3), xp.full(3, 4.0), training=False)

    check_op(fn, x, weight, weight)
    with pytest.raises(ValueError, match="1 value per channel, training needs at least 2"):
        F.batch_norm(Tensor(x), Tensor(weight), Tensor(weight), xp.zeros(3), xp.ones(3), training=True)


def test_two_equal_shapes_of_data_give_equal_numbers(xp):
    """(N,H,W,C) and (M,C) are the same thing."""
    x = xp.asarray(kink_free_array((2, 3, 4, 5)))
    one = Tensor(xp.ones(5))
    y = [F.batch_norm(Tensor(a), one, one, xp.zeros(5), xp.ones(5), True).data for a in (x, x.reshape(24, 5))]
    xp.testing.assert_array_equal(y[0].reshape(24, 5), y[1])


@given(x=image_shapes().flatmap(kink_free))
def test_a_residual_block_with_zero_gamma_is_relu(xp, x):
    """Zero-initialised last batch norms let a deep ResNet begin as the identity."""
    assume(x.size >= 2 * x.shape[-1])
    x = Tensor(xp.asarray(x), requires_grad=True)
    channels = x.shape[-1]
    gamma, beta = Tensor(xp.zeros(channels), requires_grad=True), Tensor(xp.zeros(channels), requires_grad=True)
    weight = Tensor(xp.asarray(kink_free_array((3, 3, channels, channels), 1)), requires_grad=True)
    branch = F.conv2d(x, weight, padding=1)
    y = F.relu(F.batch_norm(branch, gamma, beta, xp.zeros(channels), xp.ones(channels), True) + x)
    xp.testing.assert_array_equal(y.data, F.relu(x).data)
    dy = xp.asarray(kink_free_array(x.shape, 2))
    y.backward(dy)
    xp.testing.assert_array_equal(x.grad, dy * (x.data > 0))  # all of it comes through the shortcut
    assert not weight.grad.any()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"weight": (4,)}, r"weight has shape \(4,\), the input \(2, 3\) expects \(3,\)"),
        ({"bias": (1,)}, r"bias has shape \(1,\)"),
        ({"running_mean": (2,)}, r"running_mean has shape \(2,\)"),
        ({"running_var": (3, 1)}, r"running_var has shape \(3, 1\)"),
    ],
)
def test_errors(shapes, message):
    shapes = {"weight": (3,), "bias": (3,), "running_mean": (3,), "running_var": (3,), **shapes}
    arrays = {name: np.ones(shape) for name, shape in shapes.items()}
    arrays = {name: a if name.startswith("running") else Tensor(a) for name, a in arrays.items()}
    with pytest.raises(ValueError, match="batch_norm: " + message):
        F.batch_norm(Tensor(np.ones((2, 3))), **arrays, training=True)


def test_the_residual_of_version_0_1_is_an_error():
    """It was the ninth argument."""
    x, one = Tensor(np.ones((4, 2))), Tensor(np.ones(2))
    with pytest.raises(TypeError):
        F.batch_norm(x, one, one, np.zeros(2), np.ones(2), True, 0.1, 1e-5, x)
