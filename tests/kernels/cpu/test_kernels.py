"""Every fast kernel equals its definition: float32 against the reference in float64, over all kinds of geometry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.kernels import cpu, reference
from minires.kernels.cpu import plan, workers

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(autouse=True, scope="module", params=[1, 2, 3])
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


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers as float32: contiguous, strided or read-only."""
    array = array.astype(np.float32)
    if layout == "strided":
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    array.flags.writeable = layout != "read-only"
    return array


def check_convolution(x, weight, dy, options, tolerance: float, layout: str = "contiguous") -> None:
    fast_x, fast_dy, fast_weight = laid_out(x, layout), laid_out(dy, layout), laid_out(weight, layout)
    close(
        cpu.conv2d(fast_x, fast_weight, None, **options), reference.conv2d(x, weight, None, **options), tolerance
    )  # fmt: skip
    for need_dx, need_dweight in ((True, True), (True, False), (False, True)):
        needs = {"need_dx": need_dx, "need_dweight": need_dweight}
        fast = cpu.conv2d_backward(fast_dy, fast_x, fast_weight, **options, **needs)
        exact = reference.conv2d_backward(dy, x, weight, **options, **needs)
        for a, b in zip(fast, exact):
            assert (a is None) == (b is None)
            if a is not None:
                close(a, b, tolerance)


@given(
    n=st.integers(1, 4), h=st.integers(1, 9), w=st.integers(1, 9), channels=st.integers(1, 5),
    outputs=st.integers(1, 5), kernel=st.one_of(pairs, st.just((7, 7))), stride=pairs, dilation=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), groups=st.sampled_from([1, 1, 2]),
    layout=st.sampled_from(["contiguous", "strided", "read-only"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_convolution(n, h, w, channels, outputs, kernel, stride, dilation, padding, groups, layout, seed):
    ho, wo = reference.output_size((n, h, w, channels), kernel, stride, padding, dilation)
    if not ho or not wo:
        return
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, h, w, channels * groups))
    weight = rng.standard_normal((*kernel, channels, outputs * groups))
    dy = rng.standard_normal((n, ho, wo, outputs * groups))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check_convolution(x, weight, dy, options, tolerance=5e-6, layout=layout)


@pytest.mark.parametrize(
    ("shape", "outputs"), [((9, 16, 16, 32), 32), ((12, 12, 20, 32), 40), ((32, 8, 8, 64), 33), ((3, 32, 32, 48), 64)]
)
def test_winograd(shape, outputs):
    """Layers that Winograd takes. Its rounding is about ten times im2col's: 3e-5 of the largest value at most."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape), rng.standard_normal((3, 3, shape[3], outputs))
    dy = rng.standard_normal((*shape[:3], outputs))
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    assert plan.use_winograd(shape, weight.shape, ((3, 3), (1, 1), (1, 1), (1, 1)))
    check_convolution(x, weight, dy, options, tolerance=3e-5)


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


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4), relu=st.booleans(), with_residual=st.booleans(),
    training=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_batch_norm(shape, relu, with_residual, training, seed):
    check_batch_norm(shape, relu, with_residual, training, seed)


@pytest.mark.parametrize("channels", [1, 16, 64, 2048, 5000])
def test_batch_norm_over_many_chunks(channels):
    check_batch_norm((4, 16, 16, channels), True, True, True, 0)


def check_batch_norm(shape, relu, with_residual, training, seed) -> None:
    rng = np.random.default_rng(seed)
    channels, eps = shape[3], 0.1  # a large eps: the variance of two values may be almost 0
    # Values that float32 holds exactly enough to decide every ReLU alike: multiples of 1/8, plus 1/16 to be off zero.
    x, dy, residual = (np.round(rng.standard_normal(shape) * 8) / 8 for _ in range(3))
    weight, bias = rng.standard_normal(channels), rng.standard_normal(channels)
    residual = residual if with_residual else None
    f32 = [None if a is None else a.astype(np.float32) for a in (x, dy, residual, weight, bias)]
    fast_x, fast_dy, fast_residual, fast_weight, fast_bias = f32
    mean, var = reference.batch_norm_statistics(x)
    fast_mean, fast_var = cpu.batch_norm_statistics(fast_x)
    close(fast_mean, mean)
    close(fast_var, var, 1e-5)
    fast_mean, fast_var = mean.astype(np.float32), var.astype(np.float32)
    y = reference.batch_norm_apply(x, mean, var, weight, bias, eps, residual, relu)
    fast_y = cpu.batch_norm_apply(fast_x, fast_mean, fast_var, fast_weight, fast_bias, eps, fast_residual, relu)
    close(fast_y, y, 1e-5)
    settings = {"eps": eps, "training": training, "relu": relu, "need_dresidual": with_residual}
    exact = reference.batch_norm_backward(dy, x, fast_y.astype(np.float64), mean, var, weight, **settings)
    fast = cpu.batch_norm_backward(fast_dy, fast_x, fast_y, fast_mean, fast_var, fast_weight, **settings)
    for a, b in zip(fast, exact):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, 3e-5)


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
    y = cpu.batch_norm_apply(x, mean, var, np.ones(3, np.float32), np.zeros(3, np.float32), 1e-5, None, True)
    assert np.isnan(y[..., 1]).all()
    assert np.isnan(cpu.conv2d(x, np.ones((1, 1, 3, 2), np.float32), None, (1, 1), (0, 0), (1, 1), 1)[1, 2, 2]).all()


def test_relu_gradient_at_zero_is_zero():
    """Also where a weight of 0 makes every output exactly 0, of either sign."""
    x = np.array([-3.0, -1.0, 1.0, 3.0], np.float32).reshape(4, 1, 1, 1)
    zero, mean, var = np.zeros(1, np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    y = cpu.batch_norm_apply(x, mean, var, zero, zero, 1e-5, None, True)
    dy = np.ones_like(x)
    dx, _, dbias, _ = cpu.batch_norm_backward(dy, x, y, mean, var, zero, 1e-5, True, True, False)
    assert not dx.any()
    assert dbias == 0


@given(
    n=st.integers(1, 4), h=st.integers(1, 9), w=st.integers(1, 9), c=st.integers(1, 5), kernel=pairs, stride=pairs,
    seed=st.integers(0, 999),
)  # fmt: skip
def test_pooling(n, h, w, c, kernel, stride, seed):
    padding = (kernel[0] // 2, kernel[1] // 2)
    x = np.random.default_rng(seed).permutation(n * h * w * c).reshape(n, h, w, c).astype(np.float32)
    if 0 in reference.output_size(x.shape, kernel, stride, padding):
        return
    y = cpu.max_pool2d(x, kernel, stride, padding)
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
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(size, nesterov):
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal(size) for _ in range(3)]
    fast = [a.astype(np.float32) for a in exact]
    for _ in range(3):
        reference.sgd_update(*exact, 0.1, 0.9, 0.01, nesterov)
        cpu.sgd_update(*fast, 0.1, 0.9, 0.01, nesterov)
    for a, b in zip(fast, exact):
        close(a, b)


@pytest.mark.parametrize("size", [1, 7, 300_001])
@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.0, False), (0.1, False), (0.1, True)])
def test_adam(size, weight_decay, decoupled):
    rng = np.random.default_rng(0)
    exact = [rng.standard_normal(size) for _ in range(4)]
    exact[3] = np.abs(exact[3])
    fast = [a.astype(np.float32) for a in exact]
    for step in (1, 2, 3):
        reference.adam_update(*exact, step, 0.01, 0.9, 0.999, 1e-8, weight_decay, decoupled)
        cpu.adam_update(*fast, step, 0.01, 0.9, 0.999, 1e-8, weight_decay, decoupled)
    for a, b in zip(fast, exact):
        close(a, b, 1e-5)


def test_column_sum():
    x = np.random.default_rng(0).integers(-9, 9, (5, 7, 3, 6))
    np.testing.assert_array_equal(cpu.column_sum(x.astype(np.float32)), x.sum(axis=(0, 1, 2)))


def test_the_direct_choice_turns_winograd_off(monkeypatch):
    layer = ((8, 16, 16, 64), (3, 3, 64, 64), ((3, 3), (1, 1), (1, 1), (1, 1)))
    assert plan.use_winograd(*layer)
    monkeypatch.setattr(plan, "choice", "direct")
    assert not plan.use_winograd(*layer)
