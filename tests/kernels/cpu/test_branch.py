"""A residual branch as one operation equals its layers one after the other, forward, backward, and in its side effects.

The layer-by-layer answer comes from the reference kernels, which never fuse. Finite differences check those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minires as mr
import minires.functional as F
from minires import kernels, models, nn, optim
from minires.kernels.cpu import workers
from minires.kernels.cpu.batch_norm import scale_and_shift
from minires.testing import with_layout


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
    residual: tuple[int, ...] | str | None,
    relu: bool,
    room: str,
    steps: int = 1,
    flat: bool = False,
) -> list[np.ndarray]:
    """Everything that a branch yields and changes: output, all gradients, running statistics."""
    kernels.use(room)
    layers, rng = make(), np.random.default_rng(1)
    if flat:
        optim.SGD(parameters(layers), lr=0.1)  # gradients now go to views of a flat buffer
    for _ in range(steps):
        leaf = mr.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)
        x = leaf * 1.5
        other = None
        if isinstance(residual, tuple):
            other = mr.Tensor(rng.standard_normal(residual).astype(np.float32), requires_grad=True)
        y = nn.branch(x, layers, x if residual == "x" else other, relu)
        weights = mr.Tensor(rng.standard_normal(y.shape).astype(np.float32))
        ((y * weights).sum() + (x * x).sum()).backward()  # x is used outside of the branch too
    results = [y.numpy(), leaf.grad, *(p.grad for p in parameters(layers))]
    results += [a for _, norm in layers for a in (norm.running_mean, norm.running_var)]
    results += [np.array([norm.num_batches_tracked for _, norm in layers])]
    return results + ([other.grad] if other is not None else [])


def assert_same(fused: list[np.ndarray], separate: list[np.ndarray], tolerance: float = 3e-4) -> None:
    """Relative, by the L2 norm: a ReLU mask may flip where a value is within rounding of 0."""
    assert len(fused) == len(separate)
    for i, (a, b) in enumerate(zip(fused, separate)):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * (np.linalg.norm(b) + 1e-3), f"result {i}"


CASES = {  # layers (C, O, kernel, stride, padding), the input's shape, the residual's
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
    spec, shape, residual = CASES[name]
    arguments = (lambda: layers_of(*spec)), shape, residual, relu
    assert_same(run(*arguments, "auto"), run(*arguments, "reference"))


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("name", ["bottleneck, stride 2", "Winograd, identity shortcut"])
def test_equals_layer_by_layer_for_any_number_of_workers(name, count):
    """Statistics and gradients are sums over what each worker has seen."""
    spec, shape, residual = CASES[name]
    arguments = (lambda: layers_of(*spec)), shape, residual, True
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
    assert_same(run(*arguments, "auto"), run(*arguments, "reference"), tolerance=5e-3)


@pytest.mark.parametrize("flat", [False, True])
def test_gradients_accumulate_over_two_backward_passes(flat):
    spec, shape, residual = CASES["bottleneck, identity shortcut"]
    arguments = (lambda: layers_of(*spec)), shape, residual, True
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


def test_zero_weights_and_exact_zeros():
    """A batch norm with weight 0 puts every value exactly at ReLU's kink, where the gradient is 0 by convention."""
    layers = layers_of((3, 4, 3, 1, 1), (4, 3, 1, 1, 0))
    layers[0][1].weight.data[...] = 0
    layers[0][1].bias.data[...] = 0
    x = mr.Tensor(np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32), requires_grad=True)
    y = nn.branch(x, layers)
    (y * y).sum().backward()
    assert not x.grad.any()
    assert not layers[0][1].bias.grad.any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_evaluation_equals_layer_by_layer(with_residual, relu):
    layers = layers_of((4, 6, 1, 1, 0), (6, 4, 3, 1, 1))
    rng = np.random.default_rng(0)
    for _, norm in layers:
        norm.running_mean[...] = rng.standard_normal(norm.num_features)
        norm.running_var[...] = rng.uniform(0.5, 2, norm.num_features)
        norm.eps = 0.1
        norm.eval()
    x = mr.Tensor(rng.standard_normal((3, 5, 6, 4)).astype(np.float32))
    residual = x if with_residual else None
    before = [norm.running_mean.copy() for _, norm in layers]
    with mr.no_grad():
        fused = nn.branch(x, layers, residual, relu)
        with nn.observe(lambda module, inputs, output: None):
            separate = nn.branch(x, layers, residual, relu)
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
    ("shape", "residual", "message"),
    [
        ((2, 4, 4, 5), None, "input has 5 channels"),
        ((1, 1, 1, 3), None, "training needs at least 2"),
        ((2, 4, 4, 3), (2, 4, 4, 5), "residual has shape"),
    ],
)
def test_wrong_shapes(shape, residual, message):
    other = None if residual is None else mr.Tensor(np.zeros(residual, np.float32))
    with pytest.raises(ValueError, match=message):
        nn.branch(mr.Tensor(np.zeros(shape, np.float32)), layers_of((3, 4, 3, 1, 1)), other)


@pytest.mark.parametrize(("depth", "size", "tolerance"), [(20, 32, 1e-5), (18, 16, 1e-3)])
def test_networks_train_alike_with_both_rooms(depth, size, tolerance):
    """Three steps of Adam: the losses agree to rounding. Measured: 1e-7 and, with Winograd's layers, 2e-4."""
    losses = {}
    for room in ("auto", "reference"):
        kernels.use(room)
        model = models.build(depth, generator=np.random.default_rng(0))
        optimizer = optim.Adam(model.parameters(), lr=1e-4)
        rng = np.random.default_rng(1)
        losses[room] = []
        for _ in range(3):
            x = mr.Tensor(rng.standard_normal((8, size, size, 3)).astype(np.float32))
            loss = F.cross_entropy(model(x), np.arange(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[room].append(loss.item())
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
