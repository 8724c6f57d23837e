"""A small data set and a small network, which train in milliseconds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import minires as mr
from minires import data, nn, optim
from minires.data import Dataset
from minires.train import Training


class TinyNet(nn.Module):
    """Everything whose state a checkpoint must keep: weights, running statistics, and dropout's random numbers."""

    def __init__(self, classes: int = 3, width: int = 6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.GlobalAvgPool2d()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.dropout(self.pool(self.bn(self.conv(x)))))


def make_dataset(seed: int = 0) -> Dataset:
    """Noise in which the class is the brightest channel: 44 training and 15 test images of 8x8."""
    rng = np.random.default_rng(seed)

    def draw(n):
        labels = rng.integers(0, 3, n)
        images = rng.integers(0, 120, (n, 8, 8, 3))
        images[np.arange(n), :, :, labels] += 80
        return images.astype(np.uint8), labels.astype(np.int64)

    train_images, train_labels = draw(44)
    test_images, test_labels = draw(15)
    classes = ("red", "green", "blue")
    return Dataset(
        "Colours", train_images, train_labels, test_images, test_labels, classes, (0.3, 0.3, 0.3), (0.2, 0.2, 0.2)
    )


def make_run(optimizer: str = "sgd", width: int = 6, **identity) -> SimpleNamespace:
    """A fresh run with seed 0: dataset, batches (5 an epoch), model, optimiser, and the Training around them."""
    mr.manual_seed(0)
    dataset = make_dataset()
    options = {"mean": dataset.mean, "std": dataset.std}
    model = TinyNet(width=width)
    if optimizer == "sgd":
        chosen = optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    else:
        chosen = optim.Adam(model.parameters(), 0.01)
    return SimpleNamespace(
        dataset=dataset,
        train_batches=data.Loader(dataset.train_images, dataset.train_labels, 8, train=True, **options),
        test_batches=data.Loader(dataset.test_images, dataset.test_labels, 8, train=False, **options),
        training=Training(model, chosen, {"depth": 3, **identity}, {"depth": 3, "seed": 0}),
    )


@pytest.fixture
def new():
    """The function that makes a fresh run."""
    return make_run
