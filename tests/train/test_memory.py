"""The predicted memory of a training step against what a process takes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from minires import kernels, models
from minires.train.memory import step_memory

OTHERS = pytest.mark.nightly("3 s each; ResNet-20 is tried in any case")
CODE = """
import numpy as np
import minires as mr, minires.functional as F
model = mr.models.build({depth}, stem={stem!r})
optimizer = mr.optim.Adam(model.parameters())
x = mr.Tensor(np.random.default_rng(0).standard_normal(({batch}, {size}, {size}, 3)).astype(np.float32))
for _ in range(2):
    optimizer.zero_grad()
    F.cross_entropy(model(x), np.zeros({batch}, np.int64)).backward()
    optimizer.step()
print(1024 * next(int(text.split()[1]) for text in open("/proc/self/status") if text.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and the allocator are Linux's")
@pytest.mark.parametrize(
    ("depth", "stem", "size", "batch"),
    [
        (20, None, 32, 128),
        pytest.param(56, None, 32, 32, marks=OTHERS),
        pytest.param(18, "cifar", 32, 32, marks=OTHERS),
        pytest.param(50, "imagenet", 64, 8, marks=OTHERS),
    ],
)
def test_within_15_percent_of_what_is_measured(depth, stem, size, batch):
    code = CODE.format(depth=depth, stem=stem, size=size, batch=batch)
    done = subprocess.run([sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE)
    predicted = step_memory(models.build(depth, stem=stem), (size, size, 3), batch, slots=2).total
    assert abs(predicted / int(done.stdout) - 1) < 0.15


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and the allocator are Linux's")
def test_the_reference_takes_what_is_predicted(monkeypatch):
    code = CODE.format(depth=20, stem=None, size=32, batch=32)
    monkeypatch.setenv("MINIRES_KERNELS", "reference")
    done = subprocess.run([sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE)
    kernels.use("reference")
    try:
        predicted = step_memory(models.resnet20(), (32, 32, 3), 32, slots=2).total
    finally:
        kernels.use("auto")
    assert abs(predicted / int(done.stdout) - 1) < 0.2


def test_activations_grow_with_the_batch_and_nothing_is_changed():
    model = models.resnet20()
    before = model.state_dict()
    small, large = (step_memory(model, (32, 32, 3), n, slots=1) for n in (8, 16))
    assert large.activations == 2 * small.activations
    assert small.weights == large.weights == 3 * 4 * sum(p.size for p in model.parameters())
    # every convolution's output and every block's: 7 at 32x32x16, 6 at 16x16x32, 6 at 8x8x64; 4, 3, 3
    floor = 4 * 32 * 32 * (16 * (7 + 4) + 8 * (6 + 3) + 4 * (6 + 3))
    fused = kernels.in_use() != "reference"  # else what lies between the layers is kept too
    assert floor <= small.activations / 8 < (1.2 if fused else 2.5) * floor
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
