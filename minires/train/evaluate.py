"""Evaluation: how good a model is on images outside the training set.

Reading order: after data/loader.py. Next: training.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

import minires.functional as F
from minires.data.loader import Batches
from minires.device import to_device
from minires.nn import Module
from minires.tensor import Tensor, no_grad


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What a model says about N images, in their order.

    loss           mean cross-entropy, without label smoothing
    labels         (N,) the true classes
    probabilities  float32 (N, K), the model's
    """

    loss: float
    labels: np.ndarray
    probabilities: np.ndarray

    def __repr__(self) -> str:
        return f"Evaluation({len(self.labels):,} images, loss {self.loss:.4f}, accuracy {100 * self.accuracy:.2f} %)"

    @property
    def predictions(self) -> np.ndarray:
        """(N,) the most probable classes."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """The share of the N images whose most probable class is the true one."""
        return float((self.predictions == self.labels).mean())

    def numbers(self, part: str) -> dict[str, float]:
        """Loss, accuracy and number of images, under names that begin with `part`: test_loss, ..."""
        return {f"{part}_loss": self.loss, f"{part}_accuracy": self.accuracy, f"{part}_images": len(self.labels)}


def evaluate(
    model: Module,
    batches: Batches,
    max_seconds: float | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run the images of `batches` through `model` in evaluation mode, then restore the mode of every module.

    Stops early when `max_seconds` have passed or `interrupted()` is true, but never before one batch is done.
    """
    start = time.monotonic()
    loss, labels, probabilities = 0.0, [], []
    with no_grad(), model.evaluating():
        for x, y in tqdm(batches.epoch(0), "testing", len(batches), leave=False, disable=None):
            logits = model(Tensor(x))
            loss += F.cross_entropy(logits, y).item() * len(y)
            labels.append(to_device(y, "cpu"))
            probabilities.append(F.softmax(logits).numpy())
            if interrupted() or (max_seconds is not None and time.monotonic() - start > max_seconds):
                break
    labels = np.concatenate(labels)
    return Evaluation(loss / len(labels), labels, np.concatenate(probabilities))
