"""Evaluation against the same sums written out, and its two ways to stop early."""

from __future__ import annotations

import numpy as np

from minires import train
from minires.tensor import Tensor, no_grad


def test_loss_and_accuracy_are_means_over_images(new):
    """15 images in batches of 8: the last batch is smaller, and must weigh less."""
    parts = new()
    model, dataset = parts.training.model, parts.dataset
    model.bn.running_mean[...] = 0.3  # evaluation must use these, not the batch's
    evaluation = train.evaluate(model, parts.test_batches)
    assert model.training

    x = (dataset.test_images.astype(np.float32) / 255 - np.float32(dataset.mean)) / np.float32(dataset.std)
    model.eval()
    with no_grad():
        logits = model(Tensor(x)).numpy().astype(np.float64)  # (15, 3)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(evaluation.probabilities, p, rtol=1e-5)
    np.testing.assert_array_equal(evaluation.labels, dataset.test_labels)
    np.testing.assert_allclose(evaluation.loss, -np.log(p[np.arange(15), dataset.test_labels]).mean(), rtol=1e-5)
    assert evaluation.accuracy == (p.argmax(axis=1) == dataset.test_labels).mean()


def test_evaluation_changes_nothing(new):
    parts = new()
    parts.training.model.eval()
    before = {name: array.tobytes() for name, array in parts.training.model.state_dict().items()}
    train.evaluate(parts.training.model, parts.test_batches)
    assert {name: array.tobytes() for name, array in parts.training.model.state_dict().items()} == before
    assert not parts.training.model.training


def test_every_module_gets_its_own_mode_back(new):
    parts = new()
    model = parts.training.model
    model.bn.eval()
    train.evaluate(model, parts.test_batches)
    assert model.training
    assert not model.bn.training


def test_it_stops_after_a_batch_when_time_is_up_or_somebody_asks(new):
    parts = new()
    assert len(train.evaluate(parts.training.model, parts.test_batches, max_seconds=0).labels) == 8
    assert len(train.evaluate(parts.training.model, parts.test_batches, interrupted=lambda: True).labels) == 8
    assert len(train.evaluate(parts.training.model, parts.test_batches, max_seconds=60).labels) == 15
