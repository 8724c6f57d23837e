"""Every backend computes the same functions: against loops too slow and too plain to be wrong."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minires import kernels, reference
from minires.device import Array, to_device
from minires.testing import (
    LAYOUTS,
    ConvGeometry,
    PoolGeometry,
    conv_geometries,
    image_shapes,
    kink_free_array,
    pool_geometries,
    seeds,
    shapes,
)
from tests.backends.conftest import BACKENDS

layouts = st.sampled_from(LAYOUTS)


# The contract


def contract() -> dict[str, inspect.Signature]:
    """{name: signature} of what a backend may override: the public functions of reference.py that take or give arrays.

    What takes shapes and settings alone (`output_size`, `pair`, ...) is no work for a backend. A function belongs to
    the contract from the day that it is written there.
    """
    signatures = {
        name: inspect.signature(function)
        for name, function in vars(reference).items()
        if inspect.isfunction(function) and function.__module__ == reference.__name__ and not name.startswith("_")
    }
    return {name: signature for name, signature in signatures.items() if "Array" in _annotations(signature)}


def _annotations(signature: inspect.Signature) -> str:
    """Of all parameters and of the result, as written."""
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    return " ".join(map(str, [*annotations, signature.return_annotation]))


def overrides(module: ModuleType, function: Callable) -> bool:
    """Whether `function` was written for the backend `module`, in one of its files."""
    return function.__module__.startswith(f"{module.__name__}.")


def test_the_contract_is_the_array_work_of_the_reference():
    heavy = {"conv2d", "conv2d_backward", "batch_norm_statistics", "batch_norm_apply", "batch_norm_backward", "relu",
             "update_running_statistics", "max_pool2d", "avg_pool2d_backward", "global_avg_pool2d", "linear_backward",
             "cross_entropy", "sgd_update", "adam_update", "prepare_lr", "crop_and_flip", "make_batch"}  # fmt: skip
    assert heavy <= set(contract())
    assert not {"pair", "output_size", "window_slices", "group_slices", "module_of"} & set(contract())
    for name, function in vars(reference).items():  # or a function could fall out of the contract unseen
        if inspect.isfunction(function) and function.__module__ == reference.__name__ and not name.startswith("_"):
            assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values()), name


@pytest.mark.parametrize("device", sorted(kernels._backends))
@pytest.mark.parametrize("name", contract())
def test_a_backend_has_every_function_of_the_contract(device, name):
    """With the same positional parameters; what it does not override is the reference's own function."""
    module, _ = kernels._backends[device]
    function, parameters = getattr(module, name), contract()[name].parameters
    assert function is getattr(reference, name) or overrides(module, function)
    own = [p for p in inspect.signature(function).parameters.values() if p.kind != p.KEYWORD_ONLY]
    assert [p.name for p in own] == list(parameters)
    assert [p.default for p in own] == [p.default for p in parameters.values()]


@pytest.mark.parametrize("device", sorted(kernels._backends))
def test_a_function_that_is_new_in_the_reference_is_in_every_backend(device, monkeypatch):
    """Though nobody has touched the backend: its __init__.py is run once more, beside the one that is in use."""

    def cube(x: Array) -> Array:
        return x**3

    cube.__module__ = reference.__name__
    monkeypatch.setattr(reference, "cube", cube, raising=False)
    assert "cube" in contract()
    monkeypatch.setattr(kernels, "register", lambda *_: None)  # the one in use stays
    module, _ = kernels._backends[device]
    again = {"__name__": module.__name__}
    exec(compile(Path(module.__file__).read_text(), module.__file__, "exec"), again)
    assert again["cube"] is cube
    assert all(again[name] is getattr(module, name) for name in contract() if name != "cube")
    assert kernels._backends[device][0] is module


def test_every_backend_that_is_registered_is_tested():
    tested = {case[0] for case in BACKENDS}
    assert {module.__name__.rpartition(".")[2] for module, _ in kernels._backends.values()} <= tested


# Convolution


def windows(x_shape, geometry, size):
    """For every output position (i, j) and kernel position (u, v) inside the image: the input position (r, s)."""
    _, h, w, _ = x_shape
    (sh, sw), (ph, pw), (dh, dw) = geometry.stride, geometry.padding, geometry.dilation
    kh, kw = geometry.weight_shape[:2]
    for i in range(size[0]):
        for j in range(size[1]):
            for u in range(kh):
                for v in range(kw):
                    r, s = i * sh + u * dh - ph, j * sw + v * dw - pw
                    if 0 <= r < h and 0 <= s < w:
                        yield i, j, u, v, r, s


def slow_conv2d(x, weight, bias, geometry):
    n, h, w, _ = x.shape
    kh, kw, c, outputs = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = geometry.stride, geometry.padding, geometry.dilation
    size = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, *size, outputs))
    for i, j, u, v, r, s in windows(x.shape, geometry, size):
        for o in range(outputs):
            g = o // (outputs // geometry.groups)  # the group, and its input channels
            y[:, i, j, o] += x[:, r, s, g * c : (g + 1) * c] @ weight[u, v, :, o]
    return y + (0 if bias is None else bias)


def slow_conv2d_backward(dy, x, weight, geometry):
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    c, outputs = weight.shape[2:]
    for i, j, u, v, r, s in windows(x.shape, geometry, dy.shape[1:3]):
        for o in range(outputs):
            g = o // (outputs // geometry.groups)
            ins = slice(g * c, (g + 1) * c)
            dx[:, r, s, ins] += np.outer(dy[:, i, j, o], weight[u, v, :, o])
            dweight[u, v, :, o] += dy[:, i, j, o] @ x[:, r, s, ins]
    return dx, dweight


SMALL = [  # a few by hand, and then whatever hypothesis draws
    ConvGeometry((2, 6, 7, 3), (3, 3, 3, 4), (1, 1), (1, 1), (1, 1), 1),
    ConvGeometry((2, 6, 7, 3), (1, 1, 3, 4), (1, 1), (0, 0), (1, 1), 1),
    ConvGeometry((2, 7, 6, 3), (1, 1, 3, 4), (2, 2), (0, 0), (1, 1), 1),
    ConvGeometry((1, 9, 8, 3), (7, 7, 3, 2), (2, 2), (3, 3), (1, 1), 1),
    ConvGeometry((1, 5, 6, 4), (3, 3, 1, 4), (1, 1), (1, 1), (1, 1), 4),
]


@given(geometry=st.one_of(st.sampled_from(SMALL), conv_geometries()), seed=seeds(), layout=layouts, bias=st.booleans())
def test_conv2d(backend, geometry, seed, layout, bias):
    x, weight = kink_free_array(geometry.x_shape, seed), kink_free_array(geometry.weight_shape, seed + 1)
    bias = kink_free_array(weight.shape[3:], seed + 2) if bias else None
    expected = slow_conv2d(x, weight, bias, geometry)
    backend.expect(backend.call("conv2d", x, weight, bias, layout=layout, **geometry.options), expected)


@given(
    geometry=st.one_of(st.sampled_from(SMALL), conv_geometries()),
    seed=seeds(),
    layout=layouts,
    needs=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_conv2d_backward(backend, geometry, seed, layout, needs):
    x, weight = kink_free_array(geometry.x_shape, seed), kink_free_array(geometry.weight_shape, seed + 1)
    dy = kink_free_array(slow_conv2d(x, weight, None, geometry).shape, seed + 2)
    got = backend.call(
        "conv2d_backward", dy, x, weight, layout=layout, need_dx=needs[0], need_dweight=needs[1], **geometry.options
    )
    for gradient, needed, expected in zip(got, needs, slow_conv2d_backward(dy, x, weight, geometry)):
        backend.expect(gradient, expected if needed else None)


@pytest.mark.parametrize("x_shape", [(2, 7, 6, 1), (2, 1, 6, 3), (2, 7, 1, 3), (1, 7, 6, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("padding", [0, 1])
def test_axes_of_length_1_have_any_stride(backend, x_shape, padding):
    """Grey pictures that were (N, 1, H, W): contiguous after the transposition, with the stride of before."""
    kernel = tuple(min(3, n + 2 * padding) for n in x_shape[1:3])
    geometry = ConvGeometry(x_shape, (*kernel, x_shape[3], 1), (1, 1), (padding, padding), (1, 1), 1)
    x, weight = kink_free_array(x_shape, 0), kink_free_array(geometry.weight_shape, 1)
    y = slow_conv2d(x, weight, None, geometry)
    backend.expect(backend.call("conv2d", x, weight, None, layout="loose", **geometry.options), y)
    dy = kink_free_array(y.shape, 2)
    got = backend.call(
        "conv2d_backward", dy, x, weight, layout="loose", need_dx=True, need_dweight=True, **geometry.options
    )
    for gradient, expected in zip(got, slow_conv2d_backward(dy, x, weight, geometry)):
        backend.expect(gradient, expected)


@given(shape=image_shapes(), u=st.integers(0, 2), v=st.integers(0, 2), seed=seeds())
def test_a_delta_kernel_shifts_the_image(backend, shape, u, v, seed):
    """One 1 in a 3x3 kernel: the output is the input, moved. Exact in any precision."""
    _, h, w, c = shape
    x = np.random.default_rng(seed).integers(-99, 100, shape).astype(np.float64)
    weight = np.zeros((3, 3, c, c))
    weight[u, v] = np.eye(c)
    y = backend.call("conv2d", x, weight, None, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    shifted = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, u : u + h, v : v + w]
    np.testing.assert_array_equal(y, shifted)


@given(shape=image_shapes(), outputs=st.integers(1, 4), stride=st.integers(1, 3), seed=seeds())
def test_a_1x1_convolution_is_a_matrix_product(backend, shape, outputs, stride, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 10, shape).astype(np.float64)
    matrix = rng.integers(-9, 10, (shape[3], outputs)).astype(np.float64)
    options = {"stride": (stride, stride), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    y = backend.call("conv2d", x, matrix[None, None], None, **options)
    np.testing.assert_array_equal(y, x[:, ::stride, ::stride] @ matrix)


# Batch normalisation


@given(x_shape=st.one_of(image_shapes(), shapes(min_dims=1, max_dims=3)), seed=seeds(), layout=layouts)
def test_column_sum_and_statistics(backend, x_shape, seed, layout):
    x = kink_free_array(x_shape, seed)
    matrix = x.reshape(-1, x_shape[-1])
    backend.expect(backend.call("column_sum", x, layout=layout), matrix.sum(axis=0))
    mean, var = backend.call("batch_norm_statistics", x, layout=layout)
    backend.expect(mean, matrix.mean(axis=0))
    backend.expect(var, matrix.var(axis=0))


def test_the_variance_survives_a_large_mean(backend):
    """mean(x²) - mean² in float32 would be off by 100 % here."""
    x = 1000 + np.random.default_rng(0).standard_normal((4, 5, 6, 3))
    _, var = backend.call("batch_norm_statistics", x)
    np.testing.assert_allclose(var, x.reshape(-1, 3).var(axis=0), rtol=1e-3)


@given(shape=image_shapes(), training=st.booleans(), seed=seeds(), layout=layouts)
def test_batch_norm(backend, shape, training, seed, layout):
    """With the statistics of the batch, or others, as in evaluation."""
    assume(math.prod(shape[:3]) >= 2)
    x, c = kink_free_array(shape, seed), shape[3:]
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    if not training:
        mean, var = kink_free_array(c, seed + 1), 0.5 + abs(kink_free_array(c, seed + 2))
    weight, bias, dy = kink_free_array(c, seed + 3), kink_free_array(c, seed + 4), kink_free_array(shape, seed + 5)
    expected = (x - mean) / np.sqrt(var + 1e-5) * weight + bias
    backend.expect(backend.call("batch_norm_apply", x, mean, var, weight, bias, 1e-5, layout=layout), expected)
    arguments = (dy, x, mean, var, weight, 1e-5, training)
    got = backend.call("batch_norm_backward", *arguments, layout=layout)
    # The reference's float64 gradients are held to finite differences in tests/functional.
    for gradient, right in zip(got, reference.batch_norm_backward(*arguments), strict=True):
        backend.expect(gradient, right)


@given(channels=st.integers(1, 300), count=st.integers(2, 100), counts=st.booleans(), seed=seeds())
def test_update_running_statistics(backend, channels, count, counts, seed):
    running_mean, running_var, mean, var = (kink_free_array((channels,), seed + i) for i in range(4))
    with backend.active() as xp:
        arrays = [backend.array(a) for a in (running_mean, running_var, mean, var)]
        batches = xp.asarray(np.array(41, np.int64)) if counts else None
        running = reference.Running(*arrays[:2], batches, 0.3)
        backend.module.update_running_statistics(running, *arrays[2:], count)
        got = [backend.result("update_running_statistics", a) for a in arrays]
        assert batches is None or int(batches) == 42
    backend.expect(got[0], 0.7 * running_mean + 0.3 * mean)
    backend.expect(got[1], 0.7 * running_var + 0.3 * var * count / (count - 1))
    backend.expect(got[2], mean)
    backend.expect(got[3], var)


@given(shape=image_shapes(), counts=st.booleans(), seed=seeds(), layout=layouts)
def test_taking_the_statistics_moves_the_running_ones(backend, shape, counts, seed, layout):
    assume(math.prod(shape[:3]) >= 2)
    x, start = kink_free_array(shape, seed), [kink_free_array(shape[3:], seed + i) for i in (1, 2)]
    with backend.active() as xp:
        batches = xp.asarray(np.array(41, np.int64)) if counts else None
        running = reference.Running(*map(backend.array, start), batches, 0.3)
        mean, var = backend.module.batch_norm_statistics(backend.array(x, layout), running)
        got = [backend.result("batch_norm_statistics", a) for a in (mean, var, running.mean, running.var)]
        assert batches is None or int(batches) == 42
    matrix = x.reshape(-1, shape[3])
    for a, b in zip(got[:2], (matrix.mean(axis=0), matrix.var(axis=0))):
        backend.expect(a, b)
    backend.expect(got[2], 0.7 * start[0] + 0.3 * matrix.mean(axis=0))
    backend.expect(got[3], 0.7 * start[1] + 0.3 * matrix.var(axis=0, ddof=1))


# Activation, pooling, loss


@given(shape=shapes(), seed=seeds(), layout=layouts)
def test_relu(backend, shape, seed, layout):
    x, dy = kink_free_array(shape, seed), kink_free_array(shape, seed + 1)
    backend.expect(backend.call("relu", x, layout=layout), np.where(x > 0, x, 0))
    backend.expect(backend.call("relu_backward", dy, np.maximum(x, 0), layout=layout), np.where(x > 0, dy, 0))


def pool_windows(geometry, size):
    """(i, j, rows, columns): each output position and its window, cut off at the image's border."""
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * geometry.stride[0] - geometry.padding[0], j * geometry.stride[1] - geometry.padding[1]
            kh, kw = geometry.kernel_size
            yield i, j, slice(max(top, 0), top + kh), slice(max(left, 0), left + kw)


def pooled_size(geometry):
    return [
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(geometry.x_shape[1:3], geometry.kernel_size, geometry.stride, geometry.padding)
    ]


@given(geometry=pool_geometries(), seed=seeds(), layout=layouts, ties=st.booleans())
@example(PoolGeometry((2, 9, 8, 2), (3, 3), (2, 2), (1, 1)), 0, "contiguous", False)
def test_pooling(backend, geometry, seed, layout, ties):
    x = kink_free_array(geometry.x_shape, seed)
    x = np.sign(x) if ties else x  # -1 and 1: maxima are tied all over
    size = pooled_size(geometry)
    n, c = x.shape[0], x.shape[3]
    highest, average = np.zeros((n, *size, c)), np.zeros((n, *size, c))
    dy = kink_free_array(highest.shape, seed + 1)
    dhighest, daverage = np.zeros(x.shape), np.zeros(x.shape)
    area = math.prod(geometry.kernel_size)
    for i, j, rows, columns in pool_windows(geometry, size):
        window = x[:, rows, columns]
        highest[:, i, j], average[:, i, j] = window.max(axis=(1, 2)), window.sum(axis=(1, 2)) / area
        daverage[:, rows, columns] += dy[:, i, j][:, None, None] / area
        first = window.reshape(n, -1, c).argmax(axis=1)  # (N, C): argmax gives the first, row by row
        r, s = np.unravel_index(first, window.shape[1:3])
        images, channels = np.ogrid[:n, :c]
        dhighest[images, rows.start + r, columns.start + s, channels] += dy[:, i, j]
    options = (geometry.kernel_size, geometry.stride, geometry.padding)
    y = backend.call("max_pool2d", x, *options, layout=layout)
    backend.expect(y, highest)
    # as in functional/pooling.py, y is the backend's own output: backward looks for elements equal to it
    backend.expect(backend.call("max_pool2d_backward", dy, x, y, *options, layout=layout), dhighest)
    backend.expect(backend.call("avg_pool2d", x, *options, layout=layout), average)
    backend.expect(backend.call("avg_pool2d_backward", dy, x.shape, *options, layout=layout), daverage)


@given(shape=image_shapes(), seed=seeds(), layout=layouts)
def test_global_average(backend, shape, seed, layout):
    x, dy = kink_free_array(shape, seed), kink_free_array((shape[0], shape[3]), seed + 1)
    backend.expect(backend.call("global_avg_pool2d", x, layout=layout), x.mean(axis=(1, 2)))
    expected = np.broadcast_to(dy[:, None, None] / (shape[1] * shape[2]), shape)
    backend.expect(backend.call("global_avg_pool2d_backward", dy, x, layout=layout), expected)


@given(
    shape=shapes(min_dims=1, max_dims=3), outputs=st.integers(1, 5), bias=st.booleans(), seed=seeds(), layout=layouts
)
def test_linear(backend, shape, outputs, bias, seed, layout):
    x, weight = kink_free_array(shape, seed), kink_free_array((shape[-1], outputs), seed + 1)
    bias = kink_free_array((outputs,), seed + 2) if bias else None
    dy = kink_free_array((*shape[:-1], outputs), seed + 3)
    backend.expect(backend.call("linear", x, weight, bias, layout=layout), x @ weight + (0 if bias is None else bias))
    for needs in ((True, True), (True, False), (False, True)):
        dx, dweight, dbias = backend.call("linear_backward", dy, x, weight, *needs, layout=layout)
        backend.expect(dx, dy @ weight.T if needs[0] else None)
        matrix, gradient = x.reshape(-1, shape[-1]), dy.reshape(-1, outputs)
        backend.expect(dweight, matrix.T @ gradient if needs[1] else None)
        backend.expect(dbias, gradient.sum(axis=0))


@given(n=st.integers(1, 4), classes=st.integers(1, 5), smoothing=st.sampled_from([0.0, 0.1, 1.0]), seed=seeds())
def test_cross_entropy(backend, n, classes, smoothing, seed):
    logits = kink_free_array((n, classes), seed)
    labels = np.random.default_rng(seed).integers(0, classes, n)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = smoothing / classes + (1 - smoothing) * np.eye(classes)[labels]
    loss, probabilities = backend.call("cross_entropy", logits, labels, smoothing)
    backend.expect(loss, -(target * np.log(p)).sum(axis=1).mean())
    backend.expect(probabilities, p)
    gradient = backend.call("cross_entropy_backward", np.array(3.0), p, labels, smoothing)
    backend.expect(gradient, 3 * (p - target) / n)


# Optimiser updates, on numbers one by one


def in_place(backend, name, arrays, **settings):
    """The arrays after the update; a view into a larger array, as the optimiser has it, must do."""
    with backend.active():
        whole = [backend.array(np.concatenate([a, [7.0]])) for a in arrays]
        views = [a[:-1] for a in whole]
        getattr(backend.module, name)(*views, **settings)
        assert all(float(a[-1]) == 7 for a in whole)
        return [backend.result(name, view) for view in views]


@given(
    seed=seeds(),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    nesterov=st.booleans(),
    n=st.integers(1, 5),
)
def test_sgd_update(backend, seed, momentum, weight_decay, nesterov, n):
    parameter, gradient, velocity = (kink_free_array((n,), seed + i) for i in range(3))
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    got = in_place(backend, "sgd_update", [parameter, gradient, velocity], **settings)
    for k in range(n):
        g = gradient[k] + weight_decay * parameter[k]
        if momentum:
            velocity[k] = momentum * velocity[k] + g
            g = g + momentum * velocity[k] if nesterov else velocity[k]
        parameter[k] -= 0.1 * g
    for a, b in zip(got, (parameter, gradient, velocity)):
        backend.expect(a, b)


@given(
    seed=seeds(),
    step=st.sampled_from([1, 2, 1000]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
    n=st.integers(1, 5),
)
def test_adam_update(backend, seed, step, weight_decay, decoupled, n):
    parameter, gradient, mean, square = (kink_free_array((n,), seed + i) for i in range(4))
    square = abs(square)
    settings = {"step": step, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    settings |= {"weight_decay": weight_decay, "decoupled": decoupled}
    got = in_place(backend, "adam_update", [parameter, gradient, mean, square], **settings)
    for k in range(n):
        g = gradient[k]
        if decoupled:
            parameter[k] -= 0.1 * weight_decay * parameter[k]
        else:
            g = g + weight_decay * parameter[k]
        mean[k] = 0.9 * mean[k] + 0.1 * g
        square[k] = 0.99 * square[k] + 0.01 * g * g
        mean_hat, square_hat = mean[k] / (1 - 0.9**step), square[k] / (1 - 0.99**step)
        parameter[k] -= 0.1 * mean_hat / (math.sqrt(square_hat) + 1e-8)
    for a, b in zip(got, (parameter, gradient, mean, square)):
        backend.expect(a, b)


@given(seed=seeds(), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_first_adam_step_has_the_size_of_the_learning_rate(backend, seed, scale):
    gradient = scale * kink_free_array((6,), seed)
    settings = {"step": 1, "lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-12}
    settings |= {"weight_decay": 0.0, "decoupled": False}
    start = np.zeros(6)
    parameter, *_ = in_place(backend, "adam_update", [start, gradient, start, start], **settings)
    np.testing.assert_allclose(parameter, -0.01 * np.sign(gradient), rtol=1e-4)


# Images


@given(
    n=st.integers(1, 4), h=st.integers(1, 6), w=st.integers(1, 6), c=st.integers(1, 3), padding=st.integers(0, 3),
    seed=seeds(),
)  # fmt: skip
def test_crop_and_flip(backend, n, h, w, c, padding, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, h, w, c), dtype=np.uint8)
    top, left = rng.integers(0, 2 * padding + 1, (2, n))
    flip = rng.integers(0, 2, n).astype(bool)
    with backend.active():
        arguments = [backend.array(a) for a in (images, top, left, flip)]
        result = backend.module.crop_and_flip(*arguments, padding)
        got = to_device(result, "cpu")
        assert got.dtype == np.uint8
        assert arguments[0].tolist() == images.tolist()
    for k in range(n):
        padded = np.pad(images[k], ((padding, padding), (padding, padding), (0, 0)))
        expected = padded[top[k] : top[k] + h, left[k] : left[k] + w]
        assert got[k].tolist() == (expected[:, ::-1] if flip[k] else expected).tolist()


def test_normalize(backend):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)
    mean, std = np.float32([0.5, 0.25]), np.float32([0.2, 0.3])
    with backend.active() as xp:
        got = to_device(backend.module.normalize(*map(xp.asarray, (images, mean, std))), "cpu")
    assert got.dtype == np.float32
    expected = (images / 255 - mean.astype(np.float64)) / std
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@given(seed=seeds(), padding=st.integers(0, 3))
def test_make_batch(backend, seed, padding):
    """Two batches of an epoch of five: like crop_and_flip and normalize of the images that were chosen."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (7, 4, 5, 3), dtype=np.uint8), rng.integers(0, 10, 7)
    mean, std = np.float32([0.5, 0.25, 0.1]), np.float32([0.2, 0.3, 0.4])
    top, left, flip = (rng.integers(0, most + 1, 5) for most in (2 * padding, 2 * padding, 1))
    choices = np.stack([rng.integers(0, 7, 5), top, left, flip], axis=1).astype(np.int32)
    for begin, n in ((0, 3), (3, 2)):
        with backend.active() as xp:
            arguments = [xp.asarray(a) for a in (images, labels, choices)]
            x, y = backend.module.make_batch(*arguments, begin, n, padding, xp.asarray(mean), xp.asarray(std))
            x, y = to_device(x, "cpu"), to_device(y, "cpu")
        assert x.dtype == np.float32
        for k, (image, i, j, mirrored) in enumerate(choices[begin : begin + n]):
            padded = np.pad(images[image], ((padding, padding), (padding, padding), (0, 0)))
            expected = padded[i : i + 4, j : j + 5]
            expected = expected[:, ::-1] if mirrored else expected
            np.testing.assert_allclose(x[k], (expected / 255 - mean) / std.astype(np.float64), rtol=1e-5, atol=1e-5)
            assert y[k] == labels[image]


@pytest.mark.parametrize("name", ["relu", "column_sum"])
def test_an_unaligned_length_is_computed_to_its_end(backend, name):
    """Sizes that no block or vector width divides."""
    x = kink_free_array((1009, 3))
    expected = np.maximum(x, 0) if name == "relu" else x.sum(axis=0)
    backend.expect(backend.call(name, x), expected)
