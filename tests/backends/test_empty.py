"""An empty batch: every operation gives an empty result, and weights zero gradients, on every backend, and
nothing is launched over the images that are not there."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import kernels, models
from minires.device import to_device


@pytest.fixture(params=["reference", "cpu", "cuda-simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the arrays are to be; the backend is in use."""
    simulated = request.param == "cuda-simulated" and request.getfixturevalue("gpu")
    kernels.use("reference" if request.param == "reference" else "auto")
    with nullcontext(simulated):
        yield "cuda" if "cuda" in request.param else "cpu"
    kernels.use("auto")


def on(device, *arrays):
    return [mr.Tensor(to_device(np.float32(a), device), requires_grad=True) for a in arrays]


ONES = np.ones(8)
OPERATIONS = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [np.ones((3, 3, 8, 8)), ONES], (0, 6, 5, 8)),
    "conv2d, 1x1": (F.conv2d, [np.ones((1, 1, 8, 8)), ONES], (0, 6, 5, 8)),
    "conv2d, 1x1, stride 2": (lambda x, w: F.conv2d(x, w, stride=2), [np.ones((1, 1, 8, 8))], (0, 3, 3, 8)),
    "conv2d, groups": (lambda x, w: F.conv2d(x, w, groups=2), [np.ones((3, 3, 4, 8))], (0, 4, 3, 8)),
    "linear": (F.linear, [np.ones((8, 3)), np.ones(3)], (0, 6, 5, 3)),
    "relu": (F.relu, [], (0, 6, 5, 8)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), [], (0, 3, 3, 8)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [], (0, 3, 2, 8)),
    "global_avg_pool2d": (F.global_avg_pool2d, [], (0, 8)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch(device, name):
    operation, weights, shape = OPERATIONS[name]
    x, *weights = on(device, np.empty((0, 6, 5, 8)), *weights)
    y = operation(x, *weights)
    assert (y.shape, y.dtype, y.device) == (shape, np.float32, device)
    y.sum().backward()
    assert x.grad.shape == x.shape
    for weight in weights:
        assert weight.grad.shape == weight.shape
        assert not to_device(weight.grad, "cpu").any()


def test_an_empty_batch_launches_nothing_of_our_own(device):
    x, weight = on(device, np.empty((0, 6, 5, 8)), np.ones((3, 3, 8, 8)))
    if (gpu := getattr(mr.device.module_of(x.data), "_gpu", None)) is None:
        pytest.skip("only the simulated GPU counts")
    gpu.reset()
    y = F.conv2d(x, weight, padding=1)
    assert not gpu.launches
    y.backward(y.data)
    assert set(gpu.launches) == {"matmul", "assign", "copy"}, "the weight's zeros, a sum over nothing, and their way"


def test_batch_norm_of_an_empty_batch(device):
    x, weight, bias = on(device, np.empty((0, 6, 5, 8)), ONES, ONES)
    statistics = [to_device(np.float32(a), device) for a in (0 * ONES, ONES)]
    y = F.batch_norm(x, weight, bias, *statistics, training=False)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert not to_device(weight.grad, "cpu").any()
    assert not to_device(bias.grad, "cpu").any()
    with pytest.raises(ValueError, match="has 0 values per channel, training needs at least 2"):
        F.batch_norm(x, weight, bias, *statistics, training=True)


@pytest.mark.parametrize("no_grad", [False, True])
def test_a_network_in_evaluation(device, no_grad):
    model = models.resnet20().to(device).eval()
    with mr.no_grad() if no_grad else nullcontext():
        assert model(*on(device, np.empty((0, 32, 32, 3)))).shape == (0, 10)
