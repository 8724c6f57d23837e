"""Training learns, stops where it is told to, resumes bit for bit, and says where a loss stopped being finite."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import numpy as np
import pytest

import minires.functional as F
from minires import nn, optim, train
from minires.optim import schedules
from minires.train.checkpoint import CheckpointError, load_model_weights, read_info
from minires.train.nonfinite import first_nonfinite_layer

EPOCHS, BATCHES = 4, 5
TIMING = ("images_per_second", "seconds")


def quiet(text):
    pass


def run(parts, epochs=EPOCHS, folder=None, stop=None, schedule=None, **options):
    """fit, with a schedule over four epochs whatever `epochs` is."""
    schedule = schedule or schedules.one_cycle(0.2, EPOCHS * BATCHES)
    return train.fit(
        parts.training, parts.train_batches, parts.test_batches, schedule, epochs,
        folder=folder, stop=stop, log=quiet, **options,
    )  # fmt: skip


def everything(parts):
    """All that training changes, as bytes and plain values, without timing."""
    state = {**parts.training.model.state_dict(), **parts.training.optimizer.state_dict()}
    history = [{k: v for k, v in record.items() if k not in TIMING} for record in parts.training.history]
    return {name: array.tobytes() for name, array in state.items()}, history, parts.training.losses


def uninterrupted(new, *arguments):
    """A run of four epochs. Runs share the default generator (of dropout), so each is made when it is its turn."""
    whole = new(*arguments)
    run(whole)
    return whole


class StopAfter(train.Stop):
    """Ctrl-C after a number of steps."""

    def __init__(self, steps):
        super().__init__()
        self.at = steps

    def reason(self):
        self.interrupted = self.interrupted or self.steps >= self.at
        return super().reason()


def test_training_learns(new):
    parts = new()
    evaluation = run(parts)
    assert parts.training.step == EPOCHS * BATCHES
    assert parts.training.history[-1]["loss"] < 0.7 * parts.training.history[0]["loss"]
    assert evaluation.accuracy > 0.8  # chance is 1/3
    assert parts.training.model.training


def test_the_record_of_an_epoch(new):
    parts = new()
    evaluation = run(parts, epochs=2)
    record = parts.training.history[1]
    assert record["epoch"] == 2
    assert record["step"] == 2 * BATCHES
    assert record["loss"] == np.mean(parts.training.losses[BATCHES:])
    assert record["accuracy"] == np.mean(parts.training.accuracies[BATCHES:])
    assert record["test_loss"] == evaluation.loss
    assert record["lr"] == schedules.one_cycle(0.2, EPOCHS * BATCHES)(2 * BATCHES - 1)
    assert record["images_per_second"] > 0
    assert parts.training.seconds > sum(record["seconds"] for record in parts.training.history)  # with the evaluations


def test_a_last_step_that_ends_it_all_is_an_error(new, tmp_path):
    """The loss of the step itself was finite still."""
    parts = new()
    with (
        train.Stop(max_steps=1) as stop,
        pytest.raises(train.TrainingError, match=r"step 1: the test loss is (nan|inf)"),
    ):
        run(parts, schedule=schedules.constant(1e30), stop=stop, folder=train.RunFolder(tmp_path))
    assert not train.RunFolder(tmp_path).is_used


def test_label_smoothing_reaches_the_loss(new):
    plain, smooth = new(), new()
    run(plain, epochs=1)
    run(smooth, epochs=1, loss=partial(F.cross_entropy, label_smoothing=0.5))
    assert plain.training.losses[0] != smooth.training.losses[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_epochs_and_two_more_are_four(new, tmp_path, optimizer):
    whole = uninterrupted(new, optimizer)
    folder = train.RunFolder(tmp_path)
    run(new(optimizer), epochs=2, folder=folder)
    second = new(optimizer)
    second.training.restore(folder.state)
    assert second.training.epoch == 2
    run(second, folder=folder)
    assert everything(second) == everything(whole)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == second.training.history


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 10, 19])
def test_interrupted_anywhere_and_resumed_is_uninterrupted(new, tmp_path, steps):
    """Steps 5 and 10 are the ends of epochs, where the evaluation is still to come."""
    whole = uninterrupted(new)
    folder = train.RunFolder(tmp_path)
    with pytest.raises(train.Interrupted, match=f"after step {steps}"):
        run(new(), folder=folder, stop=StopAfter(steps))
    second = new()
    second.training.restore(folder.state)
    assert second.training.step == steps
    assert second.training.batch == steps - BATCHES * second.training.epoch
    run(second, folder=folder)
    assert everything(second) == everything(whole)


def test_the_weights_file_is_the_model(new, tmp_path):
    parts = new()
    folder = train.RunFolder(tmp_path)
    run(parts, epochs=1, folder=folder)
    other = new()
    load_model_weights(other.training.model, folder.weights)
    for name, array in parts.training.model.state_dict().items():
        np.testing.assert_array_equal(other.training.model.state_dict()[name], array)


def test_max_steps_stops_evaluates_and_logs(new, tmp_path):
    parts = new()
    evaluation = run(parts, folder=train.RunFolder(tmp_path), stop=train.Stop(max_steps=7))
    assert parts.training.step == 7
    assert parts.training.epoch == 1
    assert len(evaluation.labels) == 15
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 1.4]
    resumed = new()
    resumed.training.restore(tmp_path / "state.safetensors")
    run(resumed, folder=train.RunFolder(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert everything(resumed) == everything(uninterrupted(new))


def test_max_minutes_stops_after_one_step_at_least(new):
    parts = new()
    run(parts, stop=train.Stop(max_minutes=1e-9))
    assert parts.training.step == 1


def test_a_finished_run_is_only_evaluated(new, tmp_path):
    parts = new()
    run(parts, epochs=1, folder=train.RunFolder(tmp_path))
    again = new()
    again.training.restore(tmp_path / "state.safetensors")
    evaluation = run(again, epochs=1)
    assert again.training.step == BATCHES
    assert evaluation.loss == parts.training.history[0]["test_loss"]
    assert again.training.record == parts.training.record


def test_speed_is_told_once(new):
    told = []
    run(new(), advice=lambda seconds: told.append(seconds) or "slow")
    assert len(told) == 1
    assert 0 < told[0] < 60


def test_no_advice_where_an_epoch_has_too_few_steps(new):
    """It would come in a later epoch, and count too many that are left."""
    told, parts = [], new()
    parts.train_batches.batch_size = 22  # two steps an epoch
    run(parts, advice=lambda seconds: told.append(seconds) or "slow")
    assert told == []


def test_a_long_epoch_is_saved_on_the_way(new, tmp_path, monkeypatch):
    parts, saved, folder = new(), [], train.RunFolder(tmp_path)
    monkeypatch.setattr("minires.train.loop.SAVE_SECONDS", 0)
    monkeypatch.setattr(folder, "save", lambda training: saved.append(training.step))
    run(parts, epochs=1, folder=folder)
    assert saved == [*range(1, BATCHES + 1), BATCHES]  # after each step, and at the end of the epoch


def test_a_signal_stops_after_the_step_with_a_checkpoint(new, tmp_path):
    parts = new()
    inner, count = parts.training.optimizer.step, 0

    def step():
        nonlocal count
        inner()
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    parts.training.optimizer.step = step
    before = signal.getsignal(signal.SIGTERM)
    with train.Stop() as stop, pytest.raises(train.Interrupted, match="after step 3"):
        run(parts, folder=train.RunFolder(tmp_path), stop=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_info(tmp_path / "state.safetensors")["step"] == 3


def test_a_second_signal_stops_at_once():
    with train.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason() == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_while_a_checkpoint_is_written(new, tmp_path, monkeypatch):
    """The checkpoint is completed, and then the run stops."""
    parts, real = new(), os.replace

    def replace(source, target):
        if str(target).endswith("state.safetensors") and not stop.interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with train.Stop() as stop, pytest.raises(train.Interrupted):
        run(parts, folder=train.RunFolder(tmp_path), stop=stop)
    resumed = new()
    resumed.training.restore(tmp_path / "state.safetensors")
    assert resumed.training.step == BATCHES
    run(resumed)
    assert everything(resumed) == everything(uninterrupted(new))


def test_ctrl_c_during_the_evaluation(new, tmp_path, monkeypatch):
    parts, stop = new(), train.Stop()
    real = parts.test_batches.epoch

    def epoch(number):
        stop.interrupted = True
        return real(number)

    monkeypatch.setattr(parts.test_batches, "epoch", epoch)
    with pytest.raises(train.Interrupted, match="after step 5"):
        run(parts, folder=train.RunFolder(tmp_path), stop=stop)
    resumed = new()
    resumed.training.restore(tmp_path / "state.safetensors")
    assert (resumed.training.epoch, resumed.training.batch) == (0, BATCHES)
    run(resumed)
    assert everything(resumed) == everything(uninterrupted(new))


# Numbers that are not finite --------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_and_layer(new, tmp_path):
    parts, folder = new(), train.RunFolder(tmp_path)
    run(parts, epochs=1, folder=folder)
    good = folder.state.read_bytes()
    parts.training.model.bn.bias.data[2] = np.nan
    with pytest.raises(train.TrainingError) as caught:
        run(parts, folder=folder)
    assert "step 6: the loss is nan" in str(caught.value)
    assert "first layer whose output is not finite is bn (BatchNorm2d), whose weights are not finite" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert folder.state.read_bytes() == good


def test_a_learning_rate_that_blows_up_is_reported(new):
    parts = new()
    with pytest.raises(train.TrainingError, match=r"step \d+: .*not finite"):
        train.fit(parts.training, parts.train_batches, parts.test_batches, schedules.constant(1e30), EPOCHS, log=quiet)


def test_weights_that_are_not_finite_are_not_saved(new, tmp_path):
    parts = new()
    parts.training.save(tmp_path / "state.safetensors")
    good = (tmp_path / "state.safetensors").read_bytes()
    parts.training.model.fc.weight.data[0, 0] = np.inf
    with pytest.raises(train.TrainingError, match=r"fc\.weight is not finite"):
        parts.training.save(tmp_path / "state.safetensors")
    assert (tmp_path / "state.safetensors").read_bytes() == good
    assert os.listdir(tmp_path) == ["state.safetensors"]


def test_first_nonfinite_layer_gives_the_innermost_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    model.eval()
    x = np.ones((1, 2), np.float32)
    assert first_nonfinite_layer(model, x) is None
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layer = dict(model.named_modules())[names[1]]
    layer.weight.data[...] = 3e38
    layer.bias.data[...] = 3e38
    with np.errstate(over="ignore", invalid="ignore"):
        dict(model.named_modules())[names[0]].weight.data[...] = 5.0
        text = first_nonfinite_layer(model, x)
    assert f"is {names[1]} (Linear)" in text
    assert "whose weights" not in text
    assert first_nonfinite_layer(model, x * np.nan) == "the input images are not finite"


# Checkpoints of another kind --------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused(new, tmp_path):
    path = tmp_path / "state.safetensors"
    new(seed=1).training.save(path)
    other = new(seed=2)
    before = everything(other)
    with pytest.raises(CheckpointError, match="its seed is 1, this run's is 2"):
        other.training.restore(path)
    assert everything(other) == before


@pytest.mark.parametrize(("wrong", "said"), [({"width": 7}, "conv.weight has shape"), ({"optimizer": "adam"}, "Adam")])
def test_a_checkpoint_that_does_not_fit_is_refused(new, tmp_path, wrong, said):
    path = tmp_path / "state.safetensors"
    new().training.save(path)
    with pytest.raises(CheckpointError, match=said):
        new(**wrong).training.restore(path)


def test_weights_are_no_state(new, tmp_path):
    parts, folder = new(), train.RunFolder(tmp_path)
    folder.save(parts.training)
    with pytest.raises(CheckpointError, match="no training state"):
        parts.training.restore(folder.weights)


def test_optimizer_goes_on_where_it_stopped(new, tmp_path):
    """The optimiser's buffers matter: a resume without them would differ."""
    parts = new("adam")
    run(parts, epochs=1, folder=train.RunFolder(tmp_path))
    resumed = new("adam")
    resumed.training.restore(tmp_path / "state.safetensors")
    for name, array in parts.training.optimizer.state_dict().items():
        np.testing.assert_array_equal(resumed.training.optimizer.state_dict()[name], array)
    assert isinstance(resumed.training.optimizer, optim.Adam)
    assert resumed.training.optimizer.steps == BATCHES
