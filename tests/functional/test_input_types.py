"""Images as bytes are not what a layer computes with: whoever forgets to convert them is told so, on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import minires.functional as F
from minires import Tensor, kernels, models, no_grad

vector = np.ones(3, np.float32)


@pytest.fixture(params=["auto", "reference"])
def kernels_in_use(request):
    kernels.use(request.param)
    yield request.param
    kernels.use("auto")


@pytest.mark.usefixtures("kernels_in_use")
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
@pytest.mark.parametrize(
    ("operation", "op"),
    [
        ("conv2d", lambda x: F.conv2d(x, Tensor(np.ones((1, 1, 3, 2), np.float32)))),
        ("batch_norm", lambda x: F.batch_norm(x, Tensor(vector), Tensor(vector), vector, vector, training=True)),
        ("batch_norm", lambda x: F.batch_norm(x, Tensor(vector), Tensor(vector), vector, vector, training=False)),
        ("max_pool2d", lambda x: F.max_pool2d(x, 2)),
        ("avg_pool2d", lambda x: F.avg_pool2d(x, 2)),
        ("global_avg_pool2d", F.global_avg_pool2d),
        ("softmax", F.softmax),
        ("log_softmax", F.log_softmax),
        ("cross_entropy", lambda x: F.cross_entropy(x, np.array([0, 1]))),
    ],
)
def test_integers_are_refused(operation, op, dtype):
    with pytest.raises(TypeError, match=rf"{operation}: input has dtype {np.dtype(dtype)}, expected floating-point"):
        op(Tensor(np.ones((2, 4, 4, 3), dtype)))


def test_an_array_is_no_tensor():
    with pytest.raises(TypeError, match=r"conv2d: input is of type ndarray, expected a Tensor: wrap it, Tensor\(x\)"):
        models.resnet20().conv1(np.zeros((2, 32, 32, 3), np.float32))


@pytest.mark.usefixtures("kernels_in_use")
def test_a_gradient_of_another_precision_arrives_in_that_of_the_layer():
    """A float64 factor or target in the loss: the kernels must not read its bytes as float32."""
    rng = np.random.default_rng(0)
    x, w, factor = (rng.standard_normal(shape) for shape in ((2, 4, 4, 3), (2, 2, 3, 5), (2, 5, 5, 5)))
    found = []
    for dtype in (np.float32, np.float64):
        leaves = [Tensor(a.astype(np.float32), requires_grad=True) for a in (x, w)]
        (F.conv2d(*leaves, padding=1) * factor.astype(dtype)).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for single, double in zip(*found):
        assert double.dtype == np.float32
        np.testing.assert_allclose(double, single, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels_in_use")
def test_foreign_byte_order():
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 4, 3), (1, 1, 3, 5)))
    other = Tensor(x.astype(x.dtype.newbyteorder()))
    assert other.dtype.isnative
    np.testing.assert_array_equal(F.conv2d(other, Tensor(w)).data, F.conv2d(Tensor(x), Tensor(w)).data)


@pytest.mark.usefixtures("kernels_in_use")
@pytest.mark.parametrize("training", [True, False])
def test_a_network_refuses_bytes(training):
    model = models.build(20).train(training)
    before = model.state_dict()
    images = Tensor(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(TypeError, match=r"uint8, expected floating-point \(images: \.astype\(np\.float32\) / 255\)"):
        model(images)
    with no_grad(), pytest.raises(TypeError, match="uint8"):
        model(images)
    for name, array in model.state_dict().items():  # nothing was counted, no statistics moved
        np.testing.assert_array_equal(array, before[name], err_msg=name)
