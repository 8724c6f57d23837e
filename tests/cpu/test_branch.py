"""A residual branch as one operation equals its layers one after the other, forward, backward, and in its side effects.

The layer-by-layer answer comes from the reference kernels, which never fuse. Finite differences check those.
"""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minires as mr
import minires.functional as F
from minires import cpu, kernels, models, nn, optim, reference
from minires.cpu import convolution, workers
from minires.cpu.batch_norm import GradientSums, scale_and_shift
from minires.nn import fused
from minires.testing import with_layout

branch_module = importlib.import_module("minires.cpu.branch")  # in the package, that name is the function


@pytest.fixture(autouse=True)
def _fast_kernels() -> Iterator[None]:
    before = kernels._choice
    kernels.use("auto")
    yield
    kernels.use(before)


def layers_of(*spec: tuple[int, int, int, int, int], seed: int = 0) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution (C, O, kernel, stride, padding) and a batch norm with weights of both signs."""
    rng = np.random.default_rng(seed)
    layers = []
    for c, o, k, s, p in spec:
        conv, norm = nn.Conv2d(c, o, k, s, p, bias=False, generator=rng), nn.BatchNorm2d(o)
        norm.weight.data[...] = rng.standard_normal(o)
        norm.bias.data[...] = rng.standard_normal(o)
        layers.append((conv, norm))
    return layers


def parameters(layers) -> list[nn.Parameter]:
    unique = {id(p): p for conv, norm in layers for p in (*conv.parameters(), *norm.parameters())}
    return list(unique.values())


def run(
    make: Callable[[], list],
    shape: tuple[int, ...],
    shortcut: tuple[int, ...] | str | None,
    relu: bool,
    backend: str,
    steps: int = 1,
    flat: bool = False,
) -> list[np.ndarray]:
    """Everything that a branch yields and changes: output, all gradients, running statistics."""
    kernels.use(backend)
    layers, rng = make(), np.random.default_rng(1)
    if flat:
        optim.SGD(parameters(layers), lr=0.1)  # gradients now go to views of a flat buffer
    for _ in range(steps):
        leaf = mr.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)
        x = leaf * 1.5
        other = None
        if isinstance(shortcut, tuple):
            other = mr.Tensor(rng.standard_normal(shortcut).astype(np.float32), requires_grad=True)
        y = nn.branch(x, layers, x if shortcut == "x" else other, relu)
        weights = mr.Tensor(rng.standard_normal(y.shape).astype(np.float32))
        ((y * weights).sum() + (x * x).sum()).backward()  # x is used outside of the branch too
    results = [y.numpy(), leaf.grad, *(p.grad for p in parameters(layers))]
    results += [a for _, norm in layers for a in (norm.running_mean, norm.running_var)]
    results += [np.array([norm.num_batches_tracked for _, norm in layers])]
    return results + ([other.grad] if other is not None else [])


def assert_same(
    fused: list[np.ndarray], separate: list[np.ndarray], tolerance: float = 3e-4, floor: float = 1e-3
) -> None:
    """Relative, by the L2 norm: a ReLU mask may flip where a value is within rounding of 0."""
    assert len(fused) == len(separate)
    for i, (a, b) in enumerate(zip(fused, separate)):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * (np.linalg.norm(b) + floor), f"result {i}"


CASES = {  # layers (C, O, kernel, stride, padding), the input's shape, the shortcut's
    "one layer": ([(3, 5, 3, 1, 1)], (2, 5, 7, 3), None),
    "bottleneck, identity shortcut": ([(4, 6, 1, 1, 0), (6, 6, 3, 1, 1), (6, 4, 1, 1, 0)], (3, 6, 5, 4), "x"),
    "bottleneck, stride 2": ([(4, 6, 1, 1, 0), (6, 6, 3, 2, 1), (6, 8, 1, 1, 0)], (3, 7, 5, 4), (3, 4, 3, 8)),
    "Winograd, identity shortcut": ([(64, 64, 3, 1, 1), (64, 64, 3, 1, 1)], (8, 16, 16, 64), "x"),
    "Winograd, few tiles and many channels": ([(128, 128, 3, 1, 1), (128, 128, 3, 1, 1)], (8, 8, 8, 128), "x"),
    "7x7, then no padding": ([(3, 4, 7, 2, 3), (4, 4, 3, 1, 0)], (1, 15, 9, 3), None),
    "strided projection": ([(4, 6, 1, 2, 0)], (5, 7, 5, 4), None),
    "one image, one channel": ([(1, 1, 3, 1, 1), (1, 1, 3, 1, 1)], (1, 4, 3, 1), "x"),
}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_equals_layer_by_layer(name, relu):
    spec, shape, shortcut = CASES[name]
    arguments = (lambda: layers_of(*spec)), shape, shortcut, relu
    assert_same(run(*arguments, "auto"), run(*arguments, "reference"))


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("name", ["bottleneck, stride 2", "Winograd, identity shortcut"])
def test_equals_layer_by_layer_for_any_number_of_workers(name, count):
    """Statistics and gradients are sums over what each worker has seen."""
    spec, shape, shortcut = CASES[name]
    arguments = (lambda: layers_of(*spec)), shape, shortcut, True
    before = workers.count
    workers.set_count(count)
    try:
        assert_same(run(*arguments, "auto"), run(*arguments, "reference"))
    finally:
        workers.set_count(before)


def test_every_batch_norm_has_its_own_eps_and_momentum():
    def make():
        layers = layers_of((4, 6, 1, 1, 0), (6, 6, 3, 1, 1), (6, 4, 1, 1, 0))
        for (_, norm), eps, momentum in zip(layers, (0.5, 1e-5, 2.0), (0.5, 0.01, 1.0)):
            norm.eps, norm.momentum = eps, momentum
        return layers

    arguments = make, (3, 6, 5, 4), "x", True
    assert_same(run(*arguments, "auto"), run(*arguments, "reference"))


@given(
    n=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 9), channels=st.integers(1, 5), width=st.integers(1, 5),
    kernel=st.sampled_from([1, 2, 3]), stride=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_layer_by_layer_for_any_geometry(n, h, w, channels, width, kernel, stride, seed):
    """Sizes from one pixel up that neither the kernel nor the stride divides; only where batch norm has 2 values."""
    first, second = (channels, width, kernel, stride, kernel // 2), (width, channels, 1, 1, 0)
    ho, wo = ((size + 2 * (kernel // 2) - kernel) // stride + 1 for size in (h, w))
    assume(n * ho * wo >= 4)  # of 2 or 3 values the variance may be nearly 0, which amplifies rounding without bound
    arguments = (lambda: layers_of(first, second, seed=seed)), (n, h, w, channels), None, True
    # The floor is for gradients that are rounding alone: 1e-5 where others are 1.
    assert_same(run(*arguments, "auto"), run(*arguments, "reference"), tolerance=5e-3, floor=1e-2)


@pytest.mark.parametrize("flat", [False, True])
def test_gradients_accumulate_over_two_backward_passes(flat):
    spec, shape, shortcut = CASES["bottleneck, identity shortcut"]
    arguments = (lambda: layers_of(*spec)), shape, shortcut, True
    assert_same(run(*arguments, "auto", 2, flat), run(*arguments, "reference", 2, flat))


@pytest.mark.parametrize("flat", [False, True])
def test_a_weight_shared_by_two_layers_gets_both_gradients(flat):
    def make():
        (conv, first), (_, second) = layers_of((4, 4, 3, 1, 1), (4, 4, 3, 1, 1))
        return [(conv, first), (conv, second)]

    arguments = make, (2, 5, 5, 4), "x", True
    assert_same(run(*arguments, "auto", 2, flat), run(*arguments, "reference", 2, flat))


def test_the_gradient_lands_in_the_flat_buffer_without_a_copy():
    layers = layers_of((3, 4, 3, 1, 1))
    optimizer = optim.SGD(parameters(layers), lr=0.1)
    nn.branch(mr.Tensor(np.ones((2, 4, 4, 3), np.float32)), layers).sum().backward()
    assert np.shares_memory(layers[0][0].weight.grad, optimizer.flat_grad)


@pytest.mark.parametrize("frozen", ["conv", "norm", "x"])
def test_frozen_parts_get_no_gradient(frozen):
    layers = layers_of((3, 4, 3, 1, 1), (4, 3, 3, 1, 1))
    if frozen != "x":
        for pair in layers:
            pair[frozen == "norm"].requires_grad_(False)
    x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32), frozen != "x")
    nn.branch(x, layers).sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert all((p.grad is None) == (frozen == "conv") for conv, _ in layers for p in conv.parameters())
    assert all((p.grad is None) == (frozen == "norm") for _, norm in layers for p in norm.parameters())


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "read-only"])
def test_any_layout_in_memory(layout):
    """Inputs, shortcut and incoming gradient as the caller happens to have them; none of them is written to."""
    rng = np.random.default_rng(0)
    x, other, dy = rng.standard_normal((3, 2, 5, 6, 4)).astype(np.float32)
    results = {}
    for kind in ("contiguous", layout):
        layers = layers_of((4, 6, 1, 1, 0), (6, 4, 3, 1, 1))
        given_arrays = [with_layout(a, kind) for a in (x, other, dy)]
        leaves = [mr.Tensor(a, requires_grad=True) for a in given_arrays[:2]]
        nn.branch(leaves[0], layers, leaves[1], relu=False).backward(given_arrays[2])
        results[kind] = [leaf.grad for leaf in leaves] + [p.grad for p in parameters(layers)]
        for array, original in zip(given_arrays, (x, other, dy)):
            np.testing.assert_array_equal(array, original)
    for a, b in zip(results[layout], results["contiguous"]):
        np.testing.assert_array_equal(a, b)


def test_gradients_are_arrays_of_their_own():
    """Without a last ReLU the shortcut's gradient is dz itself: adding to one leaf's must not change the other's."""
    x, other = (mr.Tensor(np.ones((2, 4, 4, 3), np.float32) * i, requires_grad=True) for i in (1, 2))
    dz = np.ones((2, 4, 4, 3), np.float32)
    nn.branch(x, layers_of((3, 3, 3, 1, 1)), other, relu=False).backward(dz)
    assert not np.shares_memory(x.grad, other.grad)
    assert not np.shares_memory(other.grad, dz)


def test_nan_is_not_hidden():
    """A diverged network must be seen to have diverged: no ReLU on the way turns NaN into 0."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    x[1, 2, 2, 1] = np.nan
    y = nn.branch(mr.Tensor(x), layers_of((3, 4, 3, 1, 1), (4, 3, 1, 1, 0)))
    assert np.isnan(y.numpy()).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_nan_in_a_batch_norm_is_not_hidden(name, layer, training):
    layers = layers_of((3, 4, 3, 1, 1), (4, 3, 1, 1, 0))
    getattr(layers[layer][1], name).data[1] = np.nan
    for _, norm in layers:
        norm.train(training)
    x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32))
    with nullcontext() if training else mr.no_grad():
        y = nn.branch(x, layers).numpy()
    assert np.isnan(y[..., 1]).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("shortcut", [None, 0.0, -0.0])
def test_zero_weights_and_exact_zeros(sign, shortcut):
    """A batch norm with weight 0 puts every value exactly at ReLU's kink, where the gradient is 0 by convention.

    The zeros are sums of terms of either sign: the masks read bits.
    """
    for zero in ([0], [0, 1]):
        layers = layers_of((3, 4, 3, 1, 1), (4, 3, 1, 1, 0))
        for i in zero:
            layers[i][1].weight.data[...] = sign * 0.0
            layers[i][1].bias.data[...] = sign * 0.0
        x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32), requires_grad=True)
        other = None
        if shortcut is not None:
            other = mr.Tensor(np.full((2, 4, 4, 3), shortcut, np.float32), requires_grad=True)
        y = nn.branch(x, layers, other)
        y.backward(np.ones(y.shape, np.float32))
        assert not x.grad.any()
        for i in zero:
            assert not layers[i][1].bias.grad.any()
        if other is not None and len(zero) == 2:
            assert not other.grad.any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_evaluation_equals_layer_by_layer(with_shortcut, relu):
    layers = layers_of((4, 6, 1, 1, 0), (6, 4, 3, 1, 1))
    rng = np.random.default_rng(0)
    for _, norm in layers:
        norm.running_mean[...] = rng.standard_normal(norm.num_features)
        norm.running_var[...] = rng.uniform(0.5, 2, norm.num_features)
        norm.eps = 0.1
        norm.eval()
    x = mr.Tensor(rng.standard_normal((3, 5, 6, 4)).astype(np.float32))
    shortcut = x if with_shortcut else None
    before = [norm.running_mean.copy() for _, norm in layers]
    with mr.no_grad():
        fused = nn.branch(x, layers, shortcut, relu)
        with nn.observe(lambda module, inputs, output: None):
            separate = nn.branch(x, layers, shortcut, relu)
    np.testing.assert_allclose(fused.numpy(), separate.numpy(), rtol=1e-4, atol=1e-5)
    for (_, norm), mean in zip(layers, before):
        np.testing.assert_array_equal(norm.running_mean, mean)
        assert norm.num_batches_tracked == 0


def test_observers_see_every_layer():
    """While somebody looks, the layers are computed one by one, and each is seen."""
    seen = []
    layers = layers_of((3, 4, 3, 1, 1), (4, 3, 1, 1, 0))
    with nn.observe(lambda module, inputs, output: seen.append(type(module).__name__)):
        nn.branch(mr.Tensor(np.ones((2, 4, 4, 3), np.float32)), layers)
    assert seen == ["Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize(
    ("shape", "shortcut", "message"),
    [
        ((2, 4, 4, 5), None, "input has 5 channels"),
        ((1, 1, 1, 3), None, "training needs at least 2"),
        ((2, 4, 4, 3), (2, 4, 4, 5), "shortcut has shape"),
    ],
)
def test_wrong_shapes(shape, shortcut, message):
    other = None if shortcut is None else mr.Tensor(np.zeros(shortcut, np.float32))
    with pytest.raises(ValueError, match=message):
        nn.branch(mr.Tensor(np.zeros(shape, np.float32)), layers_of((3, 4, 3, 1, 1)), other)


@pytest.mark.parametrize(("depth", "stem", "size", "tolerance"), [(20, None, 32, 1e-5), (18, "cifar", 16, 1e-4)])
def test_networks_train_alike_with_both_backends(depth, stem, size, tolerance):
    """Three steps of Adam: the losses agree to rounding. Measured: 2e-7 and, with Winograd's layers, 5e-6."""
    losses = {}
    for backend in ("auto", "reference"):
        kernels.use(backend)
        model = models.build(depth, stem=stem, generator=np.random.default_rng(0))
        optimizer = optim.Adam(model.parameters(), lr=1e-4)
        rng = np.random.default_rng(1)
        losses[backend] = []
        for _ in range(3):
            x = mr.Tensor(rng.standard_normal((8, size, size, 3)).astype(np.float32))
            loss = F.cross_entropy(model(x), np.arange(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    np.testing.assert_allclose(losses["auto"], losses["reference"], rtol=tolerance)


@pytest.mark.parametrize("spec", [(8, 8, 3, 1, 0), (8, 6, 1, 2, 0), (8, 8, 3, 1, 1)])
def test_an_input_that_is_not_contiguous(spec):
    """A transposed view, as one gets from images in PyTorch's order."""
    x = np.random.default_rng(0).standard_normal((4, 8, 9, 9)).astype(np.float32).transpose(0, 2, 3, 1)
    results = []
    for images in (x, np.ascontiguousarray(x)):
        layers = layers_of(spec)
        y = nn.branch(mr.Tensor(images, requires_grad=True), layers)
        y.backward(np.ones(y.shape, np.float32) * np.arange(y.shape[3], dtype=np.float32))
        with mr.no_grad():
            for _, norm in layers:
                norm.eval()
            evaluated = nn.branch(mr.Tensor(images), layers)
        results.append([y.numpy(), evaluated.numpy(), *(p.grad for p in parameters(layers))])
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_a_shift_is_never_negative_zero():
    """Read as bits -0.0 would pass for positive (positive_mask)."""
    ones = np.ones(1, np.float32)
    _, shift = scale_and_shift(1e-3 * ones, ones, 1e-44 * ones, 0 * ones, 1e-5, 1)
    assert shift[0] == 0
    assert not np.signbit(shift[0])


# The contract: nn.fused.Branch and nn.fused.BranchBackward


def described(layers) -> list[fused.BranchLayer]:
    """The layers as a backend takes them."""
    return [
        fused.BranchLayer(conv.weight.data, conv.geometry, norm.weight.data, norm.bias.data, norm.eps)
        for conv, norm in layers
    ]


def three_layers(shape=(3, 6, 5, 4)):
    rng = np.random.default_rng(0)
    layers = described(layers_of((4, 6, 1, 1, 0), (6, 6, 3, 1, 1), (6, 4, 1, 1, 0)))
    return layers, *(rng.standard_normal(shape).astype(np.float32) for _ in range(3))


def test_every_gradient_is_put_where_it_is_wanted():
    layers, x, shortcut, dz = three_layers()
    new = cpu.branch(x, layers, shortcut, True)[1](dz, True, False, [None] * 9)[1]
    for given_places in ([True] * 9, [i % 2 == 0 for i in range(9)], [i % 2 == 1 for i in range(9)]):
        flat = np.full(sum(gradient.size for gradient in new), np.nan, np.float32)
        ends = np.cumsum([gradient.size for gradient in new])
        places = [flat[end - a.size : end].reshape(a.shape) for a, end in zip(new, ends)]
        out = [place if wanted else None for place, wanted in zip(places, given_places)]
        _, gradients, _ = cpu.branch(x, layers, shortcut, True)[1](dz, True, False, out)
        for gradient, place, expected in zip(gradients, out, new):
            assert place is None or gradient is place
            np.testing.assert_array_equal(gradient, expected)
        for place, wanted in zip(places, given_places):
            assert wanted or np.isnan(place).all()


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_that_are_not_wanted_are_none(relu):
    layers, x, shortcut, dz = three_layers()
    results = {}
    for name, other, need_dx, is_x in (
        ("no shortcut", None, True, False),
        ("a shortcut", shortcut, True, False),
        ("x is constant", shortcut, False, False),
        ("x is the shortcut", x, True, True),
        ("x again, as another array", x.copy(), True, False),
    ):
        dx, gradients, dshortcut = cpu.branch(x, layers, other, relu)[1](dz, need_dx, is_x, [None] * 9)
        assert (dx is None) == (not need_dx)
        assert (dshortcut is None) == (other is None or is_x)
        assert [g.shape for g in gradients] == [a.shape for layer in layers for a in (layer[0], *layer[2:4])]
        results[name] = dx, dshortcut
    dx, dshortcut = results["x again, as another array"]
    np.testing.assert_array_equal(results["x is the shortcut"][0], dx + dshortcut)


def test_statistics_are_those_of_each_layers_output():
    layers, x, _, _ = three_layers()
    running = [reference.Running(*np.zeros((2, layer.bn_bias.size), np.float32), None, 1.0) for layer in layers]
    z, _ = cpu.branch(x, [layer._replace(running=r) for layer, r in zip(layers, running)], None, True)
    for layer, moved in zip(layers, running):
        y = reference.conv2d(x, layer.weight, None, *layer.geometry[1:], 1)
        mean, var = reference.batch_norm_statistics(y)
        count = y.size // y.shape[3]
        np.testing.assert_allclose(moved.mean, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moved.var, var * count / (count - 1), rtol=1e-4, atol=1e-6)
        x = reference.relu(reference.batch_norm_apply(y, mean, var, *layer[2:5]))
    np.testing.assert_allclose(z, x, rtol=1e-3, atol=1e-5)


def test_backward_frees_each_layers_output_on_the_way():
    """While the first layer's gradients are computed, only its own output is still there."""
    layers, x, _, dz = three_layers()
    backward = cpu.branch(x, layers, None, True)[1]
    saved = inspect.getclosurevars(backward).nonlocals["saved"]
    alive, seen = [weakref.ref(layer.y) for layer in saved], []
    original = convolution.backward

    def watched(*arguments):
        seen.append([ref() is not None for ref in alive])
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "backward", watched)
        backward(dz, True, False, [None] * 9)
    assert seen == [[True, True, True], [True, True, False], [True, False, False]]
    assert saved == []
    assert not any(ref() is not None for ref in alive)


WAYS = {  # of going backward: the class, the input's shape, the weight's, stride
    "any stride": (convolution.AnyStride, (5, 9, 8, 6), (3, 3, 6, 7), 2),
    "one pixel": (convolution.AnyStride, (5, 9, 8, 6), (1, 1, 6, 7), 1),
    "stride 1": (convolution.Stride1, (5, 9, 8, 6), (3, 3, 6, 7), 1),
    "Winograd": (convolution.Winograd, (8, 16, 16, 64), (3, 3, 64, 64), 1),
    "Winograd, tiles kept": (convolution.WinogradKeepingTiles, (8, 8, 8, 128), (3, 3, 128, 128), 1),
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("with_dweight", [True, False])
@pytest.mark.parametrize("name", WAYS)
def test_the_relu_of_the_layer_before_is_right_without_a_weight_gradient_too(name, with_dweight, count):
    """Then the convolution need not load x, of which the mask is made. All else is as with a weight gradient."""
    way, shape, weight_shape, stride = WAYS[name]
    rng = np.random.default_rng(0)
    padding = weight_shape[0] // 2
    geometry = reference.Geometry(weight_shape[:2], (stride, stride), (padding, padding), (1, 1))
    y, weight = (rng.standard_normal(s).astype(np.float32) for s in (shape, weight_shape))
    mean, var = reference.batch_norm_statistics(y)
    bn_weight, bn_bias = rng.standard_normal((2, shape[3])).astype(np.float32)
    normalised = reference.batch_norm_apply(y, mean, var, bn_weight, bn_bias, 1e-5)
    size = reference.output_size(shape, *geometry)
    dy = rng.standard_normal((shape[0], *size, weight_shape[3])).astype(np.float32)
    dx, dweight = np.empty(shape, np.float32), np.empty(weight_shape, np.float32) if with_dweight else None
    saved = branch_module._Saved(y, mean, var)
    layer = fused.BranchLayer(weight, geometry, bn_weight, bn_bias, 1e-5)
    vectors = branch_module._scale_and_shift(layer, saved)
    before = workers.count
    workers.set_count(count)
    try:
        assert type(convolution._way_of(convolution.Images(dy), shape, weight, geometry, dx, None)) is way
        workers.parallel(lambda a, b: workers.scratch("branch input", shape).fill(1), count)  # what is not to be read
        inputs = convolution.backward(
            convolution.Images(dy), lambda: branch_module._MaskAndSums(saved, *vectors, dx), shape, weight, geometry,
            dx, dweight,
        )  # fmt: skip
    finally:
        workers.set_count(before)
    exact_dx, exact_dweight = reference.conv2d_backward(
        dy.astype(float), np.maximum(normalised, 0), weight, *geometry[1:], 1, True, True
    )
    g = exact_dx * (normalised > 0)
    sums = GradientSums.merged([worker.sums for worker in inputs], shape[3])
    for got, exact in ((dx, g), (sums[0], g.sum((0, 1, 2))), (sums[1], (g * (y - mean)).sum((0, 1, 2)))):
        assert np.linalg.norm(got - exact) <= 1e-4 * np.linalg.norm(exact)
    if with_dweight:
        assert np.linalg.norm(dweight - exact_dweight) <= 1e-4 * np.linalg.norm(exact_dweight)


@pytest.mark.parametrize("given", ["as the input", "as the shortcut"])
def test_a_weight_that_is_the_input_or_the_shortcut_too_gets_both_gradients(given):
    """Neither gradient may be written into the optimiser's buffer alone."""
    gradients = []
    for choice in ("auto", "reference"):
        kernels.use(choice)
        rng = np.random.default_rng(0)
        conv, norm = nn.Conv2d(3, 3, 3, padding=1, bias=False, generator=rng), nn.BatchNorm2d(3)
        optim.SGD([*conv.parameters(), *norm.parameters()], 0.1)
        x = mr.Tensor(rng.standard_normal((3, 3, 3, 3)).astype(np.float32))
        y = nn.branch(conv.weight if given == "as the input" else x, [(conv, norm)], conv.weight)
        y.backward(rng.standard_normal(y.shape).astype(np.float32))
        gradients.append(conv.weight.grad.copy())
    kernels.use("auto")
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_the_tape_keeps_no_shortcut_and_no_output_without_relu():
    """Backward does not need their values."""
    rng = np.random.default_rng(0)
    layers = [(nn.Conv2d(3, 3, 3, padding=1, bias=False, generator=rng), nn.BatchNorm2d(3))]
    x = mr.Tensor(rng.standard_normal((2, 4, 4, 3)).astype(np.float32), requires_grad=True)
    shortcut = nn.branch(x, layers, relu=False)
    projected = weakref.ref(shortcut.data)
    y = nn.branch(x, layers, shortcut)
    del shortcut
    assert projected() is None
    y.backward(np.ones_like(y.data))
