"""The same networks in PyTorch: logits, gradients, buffers and optimiser steps must agree.

PyTorch is an oracle here and nowhere else; without it these tests are skipped.
"""

from __future__ import annotations

import copy
import importlib

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import kernels, models, optim
from minires.cpu import plan

torch = pytest.importorskip("torch", reason="PyTorch is not installed (optional: pip install torch)")
pytestmark = pytest.mark.torch
twins = importlib.import_module("examples.measure.torch_networks")

CASES = [
    (18, "cifar"),
    (18, "imagenet"),
    (50, "cifar"),
    (50, "imagenet"),
    (101, "cifar"),
    (101, "imagenet"),
    (20, None),
]


def pair_of_networks(depth: int, stem: str | None):
    """The minires network and its twin in PyTorch with the same weights."""
    mr.manual_seed(depth)
    ours = models.build(depth, num_classes=10, stem=stem)
    theirs = twins.build(depth, stem)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    return ours, theirs


def batch(stem: str | None, n: int = 4):
    size = 64 if stem == "imagenet" else 16
    # The seed is one with which no ReLU input lies within rounding of 0: with 1, PyTorch's own float32 gradients of
    # ResNet-18 (imagenet) are 5e-3 away from its float64 ones, for a single mask that flips.
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, size, size, 3)).astype(np.float32)
    return x, rng.integers(0, 10, n), torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def relative(ours: np.ndarray, theirs) -> float:
    """The L2 distance over the L2 norm."""
    theirs = theirs.detach().numpy()
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-12))


def to_float64(model) -> None:
    for module in model.modules():
        for attribute, value in vars(module).items():
            if isinstance(value, mr.nn.Parameter):
                value.data = value.data.astype(np.float64)
            elif isinstance(value, np.ndarray) and value.dtype.kind == "f":  # not the counters
                setattr(module, attribute, value.astype(np.float64))


@pytest.mark.parametrize(("depth", "stem"), CASES)
def test_network_equals_pytorch_in_float64(depth, stem):
    """Logits in both modes, every gradient, every batch-norm buffer, and all weights after a step of SGD."""
    ours, theirs = pair_of_networks(depth, stem)
    x, labels, torch_x = batch(stem)
    x, torch_x = x.astype(np.float64), torch_x.double()
    to_float64(ours)
    theirs.double()
    train_one_step(ours, theirs, x, labels, torch_x, tolerance=1e-8)
    assert relative(ours.eval()(mr.Tensor(x)).numpy(), theirs.eval()(torch_x)) < 1e-8  # with the moved buffers


def train_one_step(ours, theirs, x, labels, torch_x, tolerance: float) -> None:
    """One step of both networks, compared all along the way."""
    optimizer = optim.SGD(ours.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    torch_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    logits, torch_logits = ours(mr.Tensor(x)), theirs(torch_x)
    assert relative(logits.numpy(), torch_logits) < min(tolerance, 1e-4)
    F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
    torch.nn.functional.cross_entropy(torch_logits, torch.from_numpy(labels), label_smoothing=0.1).backward()
    torch_gradients = dict(theirs.named_parameters())
    for name, gradient in gradients_in_torch_layout(ours).items():
        assert relative(gradient, torch_gradients[name].grad) < tolerance, name
    optimizer.step()
    torch_optimizer.step()
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for name, theirs_after in theirs.state_dict().items():
        assert state[name].dtype == theirs_after.numpy().dtype, name
        assert relative(state[name], theirs_after) < tolerance, name


@pytest.fixture(params=["reference", "cpu, direct", "cpu, Winograd"])
def rounding(request, monkeypatch) -> float:
    """Runs a test with each kind of kernels; how many times coarser than im2col they may round."""
    kernels.use("reference" if request.param == "reference" else "auto")
    monkeypatch.setattr(plan, "choice", "direct" if request.param == "cpu, direct" else "auto")
    # docs/fast-cpu.md has the measured factors, 5 to 16. The sums' order, and with it the error, depends on the CPU.
    yield 10.0 if request.param == "cpu, Winograd" else 1.0
    kernels.use("auto")


@pytest.mark.parametrize(("depth", "stem"), [(18, "cifar"), (18, "imagenet"), (20, None)])
def test_training_step_equals_pytorch_in_float32(depth, stem, rounding):
    """The same in float32, for the networks that are shallow enough not to amplify rounding."""
    train_one_step(*pair_of_networks(depth, stem), *batch(stem), tolerance=1e-3 * rounding)


@pytest.mark.parametrize(("depth", "stem"), CASES)
def test_float32_logits(depth, stem, rounding):
    """In evaluation within 1e-4 of PyTorch; in training no further from the exact logits than PyTorch's own float32.

    Batch norm at random weights amplifies rounding from layer to layer: PyTorch's float32 ResNet-101 is itself
    2.5e-4 away from its float64 logits, so "equal" means as close to those as PyTorch comes, within a factor of 4.
    """
    ours, theirs = pair_of_networks(depth, stem)
    x, _, torch_x = batch(stem)
    with mr.no_grad(), torch.no_grad():
        assert relative(ours.eval()(mr.Tensor(x)).numpy(), theirs.eval()(torch_x)) < 1e-4
        exact = copy.deepcopy(theirs).double().train()(torch_x.double())
        their_error = relative(theirs.train()(torch_x).numpy(), exact)
    logits = ours.train()(mr.Tensor(x))  # recorded, as in training: so that fused kernels are used
    assert relative(logits.numpy(), exact) < 4 * rounding * max(their_error, 1e-6)


def gradients_in_torch_layout(model) -> dict[str, np.ndarray]:
    gradients = {}
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, mr.nn.Parameter):
                axes = module.torch_axes.get(attribute, range(value.ndim))
                gradients[f"{prefix}.{attribute}"] = value.grad.transpose(tuple(axes))
    return {name.removeprefix("."): gradient for name, gradient in gradients.items()}


OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_optimizer_steps_equal_pytorch(name, options):
    """Ten steps from the same start with the same gradients, in float64, for two parameters of different shape."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    ours = [mr.nn.Parameter(a.copy()) for a in start]
    theirs = [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in start]
    optimizer = getattr(optim, name)(ours, **options)
    torch_optimizer = getattr(torch.optim, name)(theirs, **options)
    for _ in range(10):
        for p, q in zip(ours, theirs):
            gradient = rng.standard_normal(p.shape)
            p.grad, q.grad = gradient, torch.from_numpy(gradient.copy())
        optimizer.step()
        torch_optimizer.step()
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [-100, 2])
def test_cross_entropy_with_weights_and_ignored_labels(smoothing, weighted, ignore):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((8, 5)), np.array([0, 2, 4, 1, ignore, 3, 2, ignore])
    weight = np.array([0.5, 1.0, 2.0, 4.0, 0.25]) if weighted else None
    ours, theirs = mr.Tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(ours, labels, smoothing, weight, ignore)
    expected = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(labels), torch.tensor(weight) if weighted else None,
        ignore_index=ignore, label_smoothing=smoothing,
    )  # fmt: skip
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "abs", "clip", "interpolate"])
def test_operations_beside_the_networks(name):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    ours, theirs = mr.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    if name == "interpolate":
        y = F.interpolate(ours, 2)
        z = torch.nn.functional.interpolate(theirs.permute(0, 3, 1, 2), scale_factor=2).permute(0, 2, 3, 1)
    else:
        y = getattr(F, name)(ours, -0.5, 0.7) if name == "clip" else getattr(F, name)(ours)
        z = theirs.clamp(-0.5, 0.7) if name == "clip" else getattr(torch, name)(theirs)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-12)
