"""Every fast kernel equals its definition: float32 against the reference in float64, over all kinds of geometry.

Every test runs with 3 workers, by night with 1 and 2: among geometries of 1 to 3 images some have fewer images than
workers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires import cpu, reference
from minires.cpu import plan, workers
from minires.testing import LAYOUTS, conv_geometries, pool_geometries, seeds, with_layout

PLAIN_3X3 = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


@pytest.fixture(
    autouse=True,
    scope="module",
    params=[
        3,
        *(pytest.param(n, marks=pytest.mark.nightly("10 s; three threads are tried in any case")) for n in (1, 2)),
    ],
)
def _workers(request) -> Iterator[None]:
    before = workers.count
    workers.set_count(request.param)
    yield
    workers.set_count(before)


def close(fast: np.ndarray, exact: np.ndarray, tolerance: float = 2e-6) -> None:
    """Same shape, float32, and within `tolerance` of the largest value."""
    assert fast.shape == exact.shape
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, exact, rtol=0, atol=tolerance * max(np.abs(exact).max(initial=0), 1e-3))


def in_flat_buffer(array: np.ndarray) -> np.ndarray:
    """`array` as a view into a larger one, as an optimiser has its weights: aligned to 4 bytes, no more."""
    flat = np.full(array.size + 2, np.nan, np.float32)
    view = flat[1:-1].reshape(array.shape)
    view[...] = array
    return view


def check_separate(results: tuple | np.ndarray, inputs: list, before: list) -> None:
    """The inputs are as they were, and no result lies in the memory of an input or of another result."""
    results = results if isinstance(results, tuple) else (results,)
    arrays = [*inputs, *results]
    for i, result in enumerate(arrays):
        if result is not None and i >= len(inputs):
            assert not any(np.shares_memory(result, other) for other in arrays[:i] if other is not None)
    for after, original in zip(inputs, before):
        np.testing.assert_array_equal(after, original)


def check_convolution(x, weight, dy, options, tolerance: float, layout: str = "contiguous") -> None:
    fast_x, fast_dy = (with_layout(a.astype(np.float32), layout) for a in (x, dy))
    fast_weight = in_flat_buffer(weight)
    inputs = [fast_dy, fast_x, fast_weight]
    before = [a.copy() for a in inputs]
    y = cpu.conv2d(fast_x, fast_weight, None, **options)
    close(y, reference.conv2d(x, weight, None, **options), tolerance)
    check_separate(y, inputs, before)
    for need_dx, need_dweight in ((True, True), (True, False), (False, True)):
        needs = {"need_dx": need_dx, "need_dweight": need_dweight}
        fast = cpu.conv2d_backward(*inputs, **options, **needs)
        exact = reference.conv2d_backward(dy, x, weight, **options, **needs)
        check_separate(fast, inputs, before)
        for a, b in zip(fast, exact):
            assert (a is None) == (b is None)
            if a is not None:
                close(a, b, tolerance)


@given(geometry=conv_geometries(), layout=st.sampled_from(LAYOUTS), seed=seeds())
def test_convolution(geometry, layout, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal(geometry.x_shape), rng.standard_normal(geometry.weight_shape)
    dy = rng.standard_normal(reference.conv2d(x, weight, None, **geometry.options).shape)
    check_convolution(x, weight, dy, geometry.options, tolerance=5e-6, layout=layout)


def test_convolution_of_no_images():
    """An empty batch has a weight gradient too: zero, not what happens to lie in memory."""
    x, weight = np.zeros((0, 8, 8, 5), np.float32), np.ones((3, 3, 5, 5), np.float32)
    assert cpu.conv2d(x, weight, None, **PLAIN_3X3).shape == (0, 8, 8, 5)
    garbage = [np.full((5, 45), np.nan, np.float32) for _ in range(20)]
    del garbage  # the freed memory is what np.empty gets next
    dx, dweight = cpu.conv2d_backward(x, x, weight, need_dx=True, need_dweight=True, **PLAIN_3X3)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dweight, 0)


def test_statistics_of_no_images():
    for statistic in cpu.batch_norm_statistics(np.zeros((0, 4, 4, 8), np.float32)):
        assert statistic.shape == (8,)
        assert np.isnan(statistic).all()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "read-only"])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((9, 16, 16, 32), 32),
        ((12, 12, 20, 32), 40),
        ((32, 8, 8, 64), 33),
        ((3, 32, 32, 48), 64),
        ((5, 14, 14, 96), 128),  # tiles that stick out; several panels of the weight
        ((9, 7, 15, 128), 64),
        ((12, 8, 7, 256), 512),  # few tiles and many channels
    ],
)
def test_winograd(shape, outputs, layout):
    """Layers that Winograd takes, odd numbers of images, tiles and channels among them."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape), rng.standard_normal((3, 3, shape[3], outputs))
    dy = rng.standard_normal((*shape[:3], outputs))
    assert plan.use_winograd(shape, weight.shape, ((3, 3), (1, 1), (1, 1), (1, 1)))
    check_convolution(x, weight, dy, PLAIN_3X3, tolerance=3e-5, layout=layout)


@pytest.mark.parametrize("channels", [32, 256])
def test_the_rounding_of_winograd(channels, monkeypatch):
    """Relative error in L2 norm, measured: im2col 3e-7 to 4e-7, Winograd 4 to 7 times that; 7 to 9 at 256 channels."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 8, 16, 16, channels))
    weight = rng.standard_normal((3, 3, channels, channels))
    needs = {"need_dx": True, "need_dweight": True}
    exact = [reference.conv2d(x, weight, None, **PLAIN_3X3)]
    exact += reference.conv2d_backward(dy, x, weight, **PLAIN_3X3, **needs)
    x, dy, weight = (a.astype(np.float32) for a in (x, dy, weight))
    for choice, least, most in (("direct", 0, 1e-6), ("auto", 1e-6, 1e-5)):
        monkeypatch.setattr(plan, "choice", choice)
        fast = [cpu.conv2d(x, weight, None, **PLAIN_3X3)]
        fast += cpu.conv2d_backward(dy, x, weight, **PLAIN_3X3, **needs)
        for a, b in zip(fast, exact):
            assert least < np.linalg.norm(a - b) / np.linalg.norm(b) < most, choice


@pytest.mark.parametrize(
    ("shape", "outputs", "geometry"),
    [
        ((8, 16, 16, 31), 32, ((3, 3), (1, 1), (1, 1), (1, 1))),  # too few channels
        ((8, 16, 5, 32), 32, ((3, 3), (1, 1), (1, 1), (1, 1))),  # of two tiles side by side 5 columns of 8 are used
        ((8, 16, 16, 32), 32, ((3, 3), (2, 2), (1, 1), (1, 1))),
        ((8, 16, 16, 32), 32, ((3, 3), (1, 1), (1, 1), (2, 2))),
        ((8, 16, 16, 32), 32, ((3, 3), (1, 1), (0, 0), (1, 1))),
        ((8, 16, 16, 32), 32, ((1, 1), (1, 1), (1, 1), (1, 1))),
        ((1, 4, 4, 32), 32, ((3, 3), (1, 1), (1, 1), (1, 1))),  # too few tiles
    ],
)
def test_layers_beside_those_that_winograd_takes(shape, outputs, geometry):
    kernel, stride, padding, dilation = geometry
    assert not plan.use_winograd(shape, (*kernel, shape[3], outputs), geometry)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape), rng.standard_normal((*kernel, shape[3], outputs))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 1}
    dy = rng.standard_normal(reference.conv2d(x, weight, None, **options).shape)
    check_convolution(x, weight, dy, options, tolerance=5e-6)


@pytest.mark.parametrize("outputs", [16, 256, 1024])
@pytest.mark.parametrize("channels", [16, 256, 1024])
def test_one_pixel_windows_of_every_width(channels, outputs):
    """Rows in blocks, columns in blocks, or neither: matmul.py chooses by shape."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((4, 8, 8, channels)), rng.standard_normal((1, 1, channels, outputs))
    dy = rng.standard_normal((4, 8, 8, outputs))
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    check_convolution(x, weight, dy, options, tolerance=5e-6)


def test_bias_and_many_chunks():
    """64 channels at 40x40 fill several chunks for each worker."""
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((5, 40, 40, 64)), rng.standard_normal((3, 3, 64, 8)), rng.standard_normal(8)
    options = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    fast = cpu.conv2d(*(a.astype(np.float32) for a in (x, weight, bias)), **options)
    close(fast, reference.conv2d(x, weight, bias, **options), 5e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(3, (1, 1)), (3, (2, 1)), (1, (1, 1)), (1, (2, 2))])
def test_gradients_over_many_chunks(kernel, stride):
    """Each worker adds the weight gradients of its chunks up; the last chunk is smaller than the others."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((13, 40, 40, 24)), rng.standard_normal((kernel, kernel, 24, 40))
    options = {"stride": stride, "padding": (kernel // 2,) * 2, "dilation": (1, 1), "groups": 1}
    dy = rng.standard_normal(reference.conv2d(x, weight, None, **options).shape)
    check_convolution(x, weight, dy, options, tolerance=1e-5)


@given(shape=st.tuples(*[st.integers(1, 7)] * 4), training=st.booleans(), seed=seeds(), layout=st.sampled_from(LAYOUTS))
def test_batch_norm(shape, training, seed, layout):
    check_batch_norm(shape, training, seed, layout)


@pytest.mark.parametrize("channels", [1, 16, 64, 2048, 5000])
def test_batch_norm_over_many_chunks(channels):
    check_batch_norm((4, 16, 16, channels), True, 0)


def check_batch_norm(shape, training, seed, layout="contiguous") -> None:
    rng = np.random.default_rng(seed)
    channels, eps = shape[3], 0.1  # a large eps: the variance of two values may be almost 0
    x, dy = (np.round(rng.standard_normal(shape) * 8) / 8 for _ in range(2))  # numbers that float32 holds exactly
    weight, bias = rng.standard_normal(channels), rng.standard_normal(channels)
    inputs = [with_layout(a.astype(np.float32), layout) for a in (x, dy)]
    inputs += [a.astype(np.float32) for a in (weight, bias)]
    before = [a.copy() for a in inputs]
    fast_x, fast_dy, fast_weight, fast_bias = inputs
    mean, var = reference.batch_norm_statistics(x)
    fast_mean, fast_var = cpu.batch_norm_statistics(fast_x)
    close(fast_mean, mean)
    close(fast_var, var, 1e-5)
    fast_mean, fast_var = mean.astype(np.float32), var.astype(np.float32)
    y = reference.batch_norm_apply(x, mean, var, weight, bias, eps)
    fast_y = cpu.batch_norm_apply(fast_x, fast_mean, fast_var, fast_weight, fast_bias, eps)
    close(fast_y, y, 1e-5)
    check_separate(fast_y, inputs, before)
    exact = reference.batch_norm_backward(dy, x, mean, var, weight, eps, training)
    fast = cpu.batch_norm_backward(fast_dy, fast_x, fast_mean, fast_var, fast_weight, eps, training)
    for a, b in zip(fast, exact):
        close(a, b, 3e-5)
    check_separate(fast, inputs, before)


RELU_SHAPES = [  # below and above the size from which relu is computed in chunks
    (), (1,), (3, 5), (5, 7, 9, 3), (1 << 15,), (3, 70, 80, 5), (1, 70, 800, 20), (9, 200, 600), (2, 600_001),
]  # fmt: skip


@functools.cache
def with_special_values(shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers, and a third of them the numbers for which there are rules of their own."""
    special = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1e-38, 3e38]
    rng = np.random.default_rng(0)
    x = np.where(rng.random(shape) < 0.3, rng.choice(special, shape), rng.standard_normal(shape))
    return np.asarray(x, np.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", RELU_SHAPES)
def test_relu_equals_the_reference(shape, layout):
    """NaN included. The sign of an exact 0 is left open, since np.maximum leaves it open."""
    x = with_layout(with_special_values(shape), layout)
    before = x.copy()
    y = cpu.relu(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, reference.relu(x))
    check_separate(y, [x], [before])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", RELU_SHAPES)
@pytest.mark.parametrize("with_relu", [True, False])
def test_relu_backward_equals_the_reference(with_relu, shape, layout):
    """Bit by bit, for the y that relu yields (NaN included) and for any other y, -0.0 and negative numbers included."""
    y = reference.relu(with_special_values(shape)) if with_relu else with_special_values(shape)
    rng = np.random.default_rng(1)
    dy = np.where(rng.random(shape) < 0.1, -0.0, rng.standard_normal(shape)).astype(np.float32)
    inputs = [with_layout(a, layout) for a in (dy, y)]
    before = [a.copy() for a in inputs]
    dx, exact = cpu.relu_backward(*inputs), np.asarray(reference.relu_backward(dy, y))
    assert dx.shape == shape
    assert dx.dtype == np.float32
    np.testing.assert_array_equal(np.ascontiguousarray(dx).view(np.int32), np.ascontiguousarray(exact).view(np.int32))
    check_separate(dx, inputs, before)


def test_relu_backward_of_a_broadcast_gradient():
    """The mean over all positions hands every position the same gradient, as a view."""
    y = np.random.default_rng(0).standard_normal((7, 90, 400, 5)).astype(np.float32)
    dy = np.broadcast_to(np.random.default_rng(1).standard_normal((7, 1, 1, 5)).astype(np.float32), y.shape)
    np.testing.assert_array_equal(cpu.relu_backward(dy, y), reference.relu_backward(dy, y))


@pytest.mark.parametrize("size", [10, 1 << 20])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_relu_of_other_dtypes(dtype, size):
    x = (np.arange(size) % 200).astype(dtype)
    for result in (cpu.relu(x), cpu.relu_backward(x, np.ones(size, dtype))):
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, x)


def test_statistics_of_a_large_mean():
    """Mean 1000, standard deviation 0.1: the plain mean(x²) - mean(x)² of float32 would be noise."""
    x = (1000 + 0.1 * np.random.default_rng(0).standard_normal((8, 16, 16, 3))).astype(np.float32)
    mean, var = cpu.batch_norm_statistics(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=(0, 1, 2)), rtol=1e-3)


def test_nan_is_not_hidden():
    x = np.ones((2, 4, 4, 3), np.float32)
    x[1, 2, 2, 1] = np.nan
    mean, var = cpu.batch_norm_statistics(x)
    assert np.isnan(mean).tolist() == [False, True, False]
    y = cpu.batch_norm_apply(x, mean, var, np.ones(3, np.float32), np.zeros(3, np.float32), 1e-5)
    assert np.isnan(y[..., 1]).all()
    assert np.isnan(cpu.conv2d(x, np.ones((1, 1, 3, 2), np.float32), None, (1, 1), (0, 0), (1, 1), 1)[1, 2, 2]).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("shortcut", [None, 0.0, -0.0])
def test_relu_gradient_at_zero_is_zero(sign, shortcut):
    """Also where a weight of 0 makes every output exactly 0, out of terms of either sign."""
    x = np.tile(np.array([-3.0, -1.0, 1.0, 3.0], np.float32), 1 << 18).reshape(4, 512, 512, 1)
    zero, mean, var = np.full(1, sign * 0.0, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    y = cpu.batch_norm_apply(x, mean, var, zero, zero, 1e-5)
    y = cpu.relu(y if shortcut is None else y + np.float32(shortcut))
    dy = cpu.relu_backward(np.ones_like(x), y)
    assert not dy.any()
    dx, _, dbias = cpu.batch_norm_backward(dy, x, mean, var, zero, 1e-5, True)
    assert not dx.any()
    assert dbias == 0


@given(geometry=pool_geometries(), layout=st.sampled_from(LAYOUTS), seed=seeds())
def test_pooling(geometry, layout, seed):
    kernel, stride, padding = geometry.kernel_size, geometry.stride, geometry.padding
    values = np.random.default_rng(seed).permutation(np.prod(geometry.x_shape)).reshape(geometry.x_shape)
    x = with_layout(values.astype(np.float32), layout)
    y = cpu.max_pool2d(x, kernel, stride, padding)
    check_separate(y, [x], [values])
    np.testing.assert_array_equal(y, reference.max_pool2d(x, kernel, stride, padding))
    dy = np.random.default_rng(seed).integers(-9, 9, y.shape).astype(np.float32)
    np.testing.assert_array_equal(
        cpu.max_pool2d_backward(dy, x, y, kernel, stride, padding),
        reference.max_pool2d_backward(dy, x, y, kernel, stride, padding),
    )
    close(cpu.avg_pool2d(x, kernel, stride, padding), reference.avg_pool2d(x.astype(float), kernel, stride, padding))
    close(
        cpu.avg_pool2d_backward(dy, x.shape, kernel, stride, padding),
        reference.avg_pool2d_backward(dy.astype(float), x.shape, kernel, stride, padding),
    )


@pytest.mark.parametrize("size", [1, 7, 300_001])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgd(size, momentum, nesterov, weight_decay):
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal(size) for _ in range(3)]
    fast = [a.astype(np.float32) for a in exact]
    for _ in range(3):
        reference.sgd_update(*exact, 0.1, momentum, weight_decay, nesterov)
        cpu.sgd_update(*fast, 0.1, momentum, weight_decay, nesterov)
    for a, b in zip(fast, exact):
        close(a, b)


@pytest.mark.parametrize("size", [1, 7, 300_001])
@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 0.3)])
def test_adam(size, weight_decay, decoupled, betas, eps):
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal(size) for _ in range(4)]
    exact[3] = np.abs(exact[3])
    fast = [a.astype(np.float32) for a in exact]
    for step in (1, 2, 3):
        reference.adam_update(*exact, step, 0.01, *betas, eps, weight_decay, decoupled)
        cpu.adam_update(*fast, step, 0.01, *betas, eps, weight_decay, decoupled)
    for a, b in zip(fast, exact):
        close(a, b, 1e-5)


@pytest.mark.parametrize("shape", [(5, 7, 3, 6), (5, 6), (1, 1), (300, 16, 16, 1), (0, 4)])
def test_column_sum(shape):
    x = np.random.default_rng(0).integers(-9, 9, shape)
    total = cpu.column_sum(x.astype(np.float32))
    assert total.dtype == np.float32
    np.testing.assert_array_equal(total, x.reshape(-1, shape[-1]).sum(axis=0))


def test_the_direct_choice_turns_winograd_off(monkeypatch):
    layer = ((8, 16, 16, 64), (3, 3, 64, 64), ((3, 3), (1, 1), (1, 1), (1, 1)))
    assert plan.use_winograd(*layer)
    monkeypatch.setattr(plan, "choice", "direct")
    assert not plan.use_winograd(*layer)
