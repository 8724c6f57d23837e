"""Initial weights have the statistics they should have, and come from the generator they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minires as mr
from minires import nn
from minires.nn import init


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 7), (5, 7)), ((3, 2, 4, 8), (24, 48)), ((1, 1, 16, 32), (16, 32))]
)
def test_fans(shape, expected):
    assert init.fans(parameter(*shape)) == expected


def test_fans_of_a_vector_is_an_error():
    with pytest.raises(ValueError, match=r"fans: a parameter of shape \(3,\) has none"):
        init.fans(parameter(3))


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 3 * 3 * 32), ("fan_out", 3 * 3 * 64)])
def test_kaiming_normal(mode, fan):
    weight = init.kaiming_normal_(parameter(3, 3, 32, 64), mode, np.random.default_rng(0)).data
    n, std = weight.size, math.sqrt(2 / fan)
    assert weight.dtype == np.float32
    # 5 standard errors of the mean and of the standard deviation of n normal values
    assert abs(weight.mean()) < 5 * std / math.sqrt(n)
    assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * n)
    assert 0.67 < (abs(weight) < std).mean() < 0.70  # 68 % within one deviation: normal, not uniform


def test_kaiming_keeps_the_scale_through_relu_layers():
    """The reason for it: activations neither vanish nor explode, here through 20 layers."""
    rng = np.random.default_rng(0)
    x = mr.Tensor(rng.standard_normal((200, 256)))
    for _ in range(20):
        weight = init.kaiming_normal_(parameter(256, 256), "fan_in", rng)
        x = (x @ weight.data.astype(np.float64)).relu()
    assert 0.3 < (x.data**2).mean() < 3


def test_uniform():
    weight = init.uniform_(parameter(100, 100), 0.3, np.random.default_rng(0)).data
    assert abs(weight).max() <= np.float32(0.3)
    assert abs(weight.std() - 0.3 / math.sqrt(3)) < 0.005
    assert abs(weight.mean()) < 0.01


def test_constant():
    assert (init.constant_(parameter(3, 2), 4).data == 4).all()


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(lambda g: nn.Conv2d(8, 64, 3, generator=g), 72), (lambda g: nn.Conv2d(8, 64, 3, groups=4, generator=g), 18),
     (lambda g: nn.Linear(72, 64, generator=g), 72)],
)  # fmt: skip
def test_layers_start_as_in_pytorch(layer, fan_in):
    """Uniform in ±1/sqrt(fan_in), weight and bias."""
    layer, bound = layer(np.random.default_rng(0)), 1 / math.sqrt(fan_in)
    for values in (layer.weight.data, layer.bias.data):
        assert 0.9 * bound < abs(values).max() <= bound * (1 + 1e-6)
        assert abs(values.std() / (bound / math.sqrt(3)) - 1) < (0.05 if values.size > 1000 else 0.3)


def test_batch_norm_starts_as_the_identity():
    bn = nn.BatchNorm2d(3)
    assert bn.weight.data.tolist() == bn.running_var.tolist() == [1, 1, 1]
    assert bn.bias.data.tolist() == bn.running_mean.tolist() == [0, 0, 0]


def test_filling_is_in_place():
    weight = parameter(4, 4)
    array = weight.data
    assert init.kaiming_normal_(weight) is weight
    assert weight.data is array
    assert array.any()


def test_the_generator_decides():
    def draw(seed: int) -> np.ndarray:
        return nn.Linear(4, 4, generator=np.random.default_rng(seed)).weight.data

    assert (draw(0) == draw(0)).all()
    assert (draw(0) != draw(1)).any()
    mr.manual_seed(7)
    first = nn.Conv2d(2, 2, 3).weight.data
    second = nn.Conv2d(2, 2, 3).weight.data
    mr.manual_seed(7)
    assert (nn.Conv2d(2, 2, 3).weight.data == first).all()
    assert (first != second).any()


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="kaiming_normal_: mode is 'fan_avg', expected 'fan_in' or 'fan_out'"):
        init.kaiming_normal_(parameter(3, 3), "fan_avg")
