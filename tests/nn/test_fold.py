"""Batch norm folded into convolutions."""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
from minires import kernels, models, nn


def trained(depth: int, stem: str | None) -> nn.Module:
    """A network whose running statistics and batch-norm weights are those of no untrained one."""
    model = models.build(depth, stem=stem)
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[...] = rng.uniform(0.5, 1.5, module.num_features)
            module.bias.data[...] = rng.standard_normal(module.num_features) * 0.1
            module.running_mean[...] = rng.standard_normal(module.num_features) * 0.1
            module.running_var[...] = rng.uniform(0.5, 1.5, module.num_features)
    return model


@pytest.mark.parametrize("kernels_in_use", ["auto", "reference"])
@pytest.mark.parametrize(("depth", "stem"), [(20, None), (18, "imagenet"), (50, "cifar")])
def test_outputs_are_those_of_evaluation(depth, stem, kernels_in_use):
    model = trained(depth, stem)
    before = model.state_dict()
    x = mr.Tensor(np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32))
    kernels.use(kernels_in_use)
    try:
        folded = mr.fold(model)
        with mr.no_grad():
            expected, found = model.eval()(x).numpy(), folded(x).numpy()
    finally:
        kernels.use("auto")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    for name, array in model.state_dict().items():  # the original is untouched
        np.testing.assert_array_equal(array, before[name])


def test_a_convolution_with_a_bias():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = mr.Tensor(np.random.default_rng(1).standard_normal((2, 5, 5, 3)).astype(np.float32))
    model(x)  # moves the running statistics
    with mr.no_grad():
        np.testing.assert_allclose(mr.fold(model)(x).numpy(), model.eval()(x).numpy(), rtol=1e-4, atol=1e-6)


def test_a_folded_network_takes_weights():
    folded = mr.fold(trained(20, None))
    folded.load_state_dict({name: 2 * array for name, array in folded.state_dict().items()})
    assert folded.state_dict().keys() == mr.fold(trained(20, None)).state_dict().keys()


def test_a_folded_network_at_several_batch_sizes():
    """One weight in two layouts: few images go through im2col, many through Winograd."""
    model = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512)).eval()
    folded = mr.fold(model)
    images = np.random.default_rng(1).standard_normal((32, 4, 4, 512)).astype(np.float32)
    with mr.no_grad():
        expected = model(mr.Tensor(images)).numpy()
        for n in (1, 32, 1):
            found = folded(mr.Tensor(images[:n])).numpy()
            assert np.linalg.norm(found - expected[:n]) < 1e-4 * np.linalg.norm(expected[:n])


class Siblings(nn.Module):
    """conv -> bn, twice in a row, of the given modules."""

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = modules

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


def assert_folds(model: nn.Module) -> None:
    x = mr.Tensor(np.random.default_rng(1).standard_normal((2, 5, 5, 4)).astype(np.float32))
    for _ in range(3):
        model(x)  # moves the running statistics
    with mr.no_grad():
        np.testing.assert_allclose(mr.fold(model)(x).numpy(), model.eval()(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_block_used_twice_is_folded_once():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    assert_folds(nn.Sequential(block, nn.ReLU(), block))


def test_convolutions_that_share_a_weight_or_a_batch_norm():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    assert_folds(Siblings(first, nn.BatchNorm2d(4), second, nn.BatchNorm2d(4)))
    norm = nn.BatchNorm2d(4)
    assert_folds(Siblings(first, norm, nn.Conv2d(4, 4, 1), norm))


def test_one_convolution_with_two_batch_norms():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(ValueError, match="the convolution before bn1 is used in 2 places"):
        mr.fold(Siblings(conv, nn.BatchNorm2d(4), conv, nn.BatchNorm2d(4)))


def test_every_part_of_a_folded_network_is_in_evaluation():
    model = trained(20, None)
    assert not any(module.training for module in mr.fold(model).modules())
    assert all(module.training for module in model.modules())


def test_nothing_to_fold():
    with pytest.raises(ValueError, match="Linear has no batch norm right behind a convolution"):
        mr.fold(nn.Linear(2, 2))
