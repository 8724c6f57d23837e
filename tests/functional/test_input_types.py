"""Images as bytes are not what a layer computes with: whoever forgets to convert them is told so, in every room."""

from __future__ import annotations

import numpy as np
import pytest

import minires.functional as F
from minires import Tensor, kernels, models, no_grad

vector = np.ones(3, np.float32)


@pytest.fixture(params=["auto", "reference"])
def room(request):
    kernels.use(request.param)
    yield request.param
    kernels.use("auto")


@pytest.mark.usefixtures("room")
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
    ],
)
def test_integers_are_refused(operation, op, dtype):
    with pytest.raises(TypeError, match=rf"{operation}: input has dtype {np.dtype(dtype)}, expected floating-point"):
        op(Tensor(np.ones((2, 4, 4, 3), dtype)))


@pytest.mark.usefixtures("room")
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
