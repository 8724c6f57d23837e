"""The best epoch by validation images, and stopping when no better one comes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minires import data, train
from minires.optim import schedules
from minires.train import RunFolder
from minires.train.best import epochs_since_best
from minires.train.checkpoint import load, read_info
from minires.train.folder import weights_file


def records(*scores):
    return [
        {"val_accuracy": accuracy, "val_loss": loss, "val_images": images[0] if images else 50}
        for accuracy, loss, *images in scores
    ]


@pytest.mark.parametrize(
    ("scores", "since"),
    [
        ([], 0),
        ([(0.1, 9)], 0),
        ([(0.1, 9), (0.2, 9)], 0),
        ([(0.3, 9), (0.2, 1), (0.1, 1)], 2),
        ([(0.3, 9), (0.3, 8)], 0),  # of equal accuracy the one with the lower loss
        ([(0.3, 8), (0.3, 8)], 1),  # and of equals the first
        ([(0.3, 8), (0.9, 1, 4)], 1),  # on four images, because the time was up
    ],
)
def test_epochs_since_the_best(scores, since):
    assert epochs_since_best(records(*scores)) == since


def run(parts, folder, epochs, *callbacks, lr=0.1):
    return train.fit(
        parts.training, parts.train_batches, parts.test_batches, schedules.constant(lr), epochs,
        part="val", callbacks=callbacks, folder=folder, log=lambda text: None,
    )  # fmt: skip


def test_the_best_weights_are_kept_beside_the_last(new, tmp_path):
    parts, folder, seen = new(), RunFolder(tmp_path), []
    best = train.KeepBest(folder)

    def remember(training, evaluation):
        seen.append({name: array.copy() for name, array in training.model.state_dict().items()})

    run(parts, folder, 8, best, remember, lr=1.0)
    history = parts.training.history
    which = len(history) - 1 - epochs_since_best(history)
    assert which < 7, "the last epoch is the best: the test shows nothing"
    arrays, info = load(folder.best)
    for name, array in seen[which].items():
        np.testing.assert_array_equal(arrays[name], array)
    assert (info["epoch"], info["val_accuracy"]) == (which + 1, history[which]["val_accuracy"])
    assert read_info(folder.weights)["epoch"] == 8
    assert weights_file(tmp_path) == folder.best
    assert best.load(parts.training) == which + 1
    for name, array in parts.training.model.state_dict().items():
        np.testing.assert_array_equal(array, seen[which][name])


def test_training_ends_when_no_better_epoch_comes(new, tmp_path):
    parts = new()
    stop = train.EarlyStop(2)
    run(parts, RunFolder(tmp_path), 50, stop, lr=0.0)  # no epoch is better than the first
    history = parts.training.history
    assert len(history) < 50
    assert epochs_since_best(history) == 2
    assert stop(parts.training)  # a resumed run knows it
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(history)
    again = new()
    again.training.restore(tmp_path / "state.safetensors")
    assert stop(again.training)


def test_an_interrupted_run_keeps_the_same_best_weights(new, tmp_path):
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    for folder in (whole, parts):
        folder.prepare()
    first = new()
    run(first, whole, 6, train.KeepBest(whole), lr=1.0)
    run(new(), parts, 3, train.KeepBest(parts), lr=1.0)
    resumed = new()
    resumed.training.restore(parts.state)
    run(resumed, parts, 6, train.KeepBest(parts), lr=1.0)
    assert whole.best.read_bytes() == parts.best.read_bytes()


@pytest.mark.parametrize("steps", [17, 23, 29])
def test_a_run_stopped_within_an_epoch_keeps_the_same_best_weights(new, tmp_path, steps):
    """After 17 of 30 steps the last finished epoch is the best of all, after the others it is not."""
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))

    def go(parts, folder, stop=None):
        folder.prepare()
        train.fit(
            parts.training, parts.train_batches, parts.test_batches, schedules.constant(2.0), 6,
            part="val", callbacks=[train.KeepBest(folder)], folder=folder, stop=stop, log=lambda text: None,
        )  # fmt: skip

    go(new(), whole)
    assert read_info(whole.best)["epoch"] == 3
    go(new(), parts, train.Stop(max_steps=steps))
    resumed = new()
    resumed.training.restore(parts.state)
    go(resumed, parts)
    assert whole.best.read_bytes() == parts.best.read_bytes()


def test_the_epoch_of_weights_from_within_an_epoch(new, tmp_path):
    folder = RunFolder(tmp_path)
    parts = new()
    train.fit(
        parts.training, parts.train_batches, parts.test_batches, schedules.constant(0.1), 6, part="val",
        callbacks=[train.KeepBest(folder)], stop=train.Stop(max_steps=2), log=lambda text: None,
    )  # fmt: skip
    assert train.KeepBest(folder).load(parts.training) == 0.4


def test_a_run_resumed_in_another_folder_takes_the_best_weights_along(new, tmp_path):
    first, second, third = (RunFolder(tmp_path / name) for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.prepare()
    parts = new()
    run(parts, first, 1, train.KeepBest(first))
    best = train.KeepBest(second)
    best.take_over(first)
    assert best.load(parts.training) == 1
    best.take_over(third)  # which has none
    assert train.KeepBest(third).load(parts.training) is None


def test_where_the_best_weights_are_gone_the_next_epoch_is_kept(new, tmp_path):
    folder = RunFolder(tmp_path)
    parts = new()
    run(parts, folder, 2, train.KeepBest(folder), lr=0.0)
    assert read_info(folder.best)["epoch"] == 1
    folder.best.unlink()
    run(parts, folder, 3, train.KeepBest(folder), lr=0.0)
    assert read_info(folder.best)["epoch"] == 3
    folder.state.unlink()
    folder.weights.unlink()
    folder.log.unlink()
    assert folder.is_used  # and no other run is begun beside it


def test_a_callback_is_called_after_every_epoch_and_may_end_the_training(new):
    parts, seen = new(), []

    def note(training, evaluation):
        seen.append((training.epoch, evaluation.accuracy))
        return training.epoch == 3

    evaluation = run(parts, None, 9, note, lambda *_: None)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == evaluation.accuracy
    assert {"val_loss", "val_accuracy", "val_images"} <= set(json.loads(json.dumps(parts.training.history[0])))
    assert "test_loss" not in parts.training.history[0]


def test_what_is_said_names_the_part(new):
    parts, lines = new(), []
    loader = data.Loader(
        parts.dataset.test_images, parts.dataset.test_labels, 8, train=False, mean=(0.3,) * 3, std=(0.2,) * 3
    )
    train.fit(parts.training, parts.train_batches, loader, schedules.constant(0.1), 1, part="val", log=lines.append)
    assert "val loss" in lines[-1]
    assert "test" not in lines[-1]
