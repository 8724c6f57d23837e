"""The predicted memory of a step, held to what simulated steps take at their peak."""

from __future__ import annotations

import pytest

import minires.functional as F
from minires import Tensor, kernels, models, optim
from minires.cuda.memory import _column_bytes, largest_batch, step_bytes
from minires.nn.summary import summary
from tests import simulator

OTHERS = pytest.mark.nightly("3 s each; ResNet-20 is tried in any case")


@pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
@pytest.mark.parametrize(
    ("depth", "stem", "size", "batch", "precision"),
    [
        (20, "cifar", 32, 4, "fp32"),
        pytest.param(20, "cifar", 32, 4, "tf32", marks=OTHERS),
        pytest.param(18, "cifar", 32, 4, "fp32", marks=OTHERS),
        pytest.param(50, "cifar", 16, 16, "fp32", marks=OTHERS),
        pytest.param(18, "imagenet", 64, 8, "fp32", marks=OTHERS),
    ],
)
def test_the_prediction_is_near_the_peak(depth, stem, size, batch, precision):
    kernels.use_precision(precision)
    try:
        with simulator.gpu() as gpu:
            import cupy

            model = models.build(depth, 10, stem).to("cuda")
            optimizer = optim.SGD(model.parameters(), 0.1, 0.9)
            x, y = cupy.zeros((batch, size, size, 3), dtype="float32"), cupy.zeros(batch, dtype="int64")
            F.cross_entropy(model(Tensor(x)), y).backward()
            optimizer.step()
            peak = gpu.peak_bytes
            predicted = step_bytes(model, (size, size, 3), batch, 1)
    finally:
        kernels.use_precision("fp32")
    assert 0.9 * peak < predicted < 1.3 * peak, f"{predicted / peak:.2f} of the peak"


def test_the_largest_batch_is_the_largest():
    model = models.resnet20()
    for available in (40 << 20, 1 << 30):
        fits = largest_batch(model, (32, 32, 3), 1, available)
        assert step_bytes(model, (32, 32, 3), fits, 1) <= available < step_bytes(model, (32, 32, 3), fits + 1, 1)
    assert largest_batch(model, (32, 32, 3), 1, 1 << 20) == 0


def test_the_columns_of_the_largest_layer_count():
    """ResNet-20 at 32x32: 16 channels in windows of 9, at 1024 positions."""
    model = models.resnet20()
    assert _column_bytes(model, summary(model, (32, 32, 3)), 2, 1.0) == 4 * 2 * 1024 * 9 * 16
