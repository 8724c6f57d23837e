"""Training: forward, loss, backward, step, again; and all that is needed to go on exactly where it stopped.

The loop is `fit`, in three levels: fit (epochs, evaluation, checkpoints) -> _train_epoch (batches) -> one step.
What changes while it runs is in one object, `Training`, and a checkpoint is that object on disk. Batches are a pure
function of (seed, epoch, index) and the learning rate one of the step, so nothing else has to be kept: on NumPy, with
the same number of threads, a run that was stopped, anywhere, and resumed has the same weights, bit for bit, as one that
was not.

Reading order: after optim/schedules.py, first in train/. Next: evaluate.py.
"""

from __future__ import annotations

import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minires.functional as F
from minires import kernels
from minires.data import Loader
from minires.device import Array, default_generator, module_of
from minires.nn import Module, observe
from minires.optim import Optimizer
from minires.optim.schedules import Schedule
from minires.tensor import Tensor, no_grad
from minires.train import checkpoint
from minires.train.device_step import DeviceStep
from minires.train.evaluate import Evaluation, evaluate
from minires.train.progress import Progress, format_seconds, say
from minires.train.stop import Stop

if TYPE_CHECKING:
    from minires.train.folder import RunFolder

WARM_UP, MEASURED = 1, 3  # steps left out, then timed, to say how long an epoch will take
SAVE_SECONDS = 600  # a checkpoint at least this often, within an epoch too


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or the weights are not finite. The text is one line saying where."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: training stopped after a complete step, and a checkpoint was written."""


@dataclass
class Training:
    """Everything that changes in the course of training.

    identity    the settings without which a checkpoint means nothing: depth, data set, seed, ... `restore` compares
    settings    all settings of the run, noted in the checkpoint for the reader
    losses      of every step so far, from the first
    accuracies  on the batch of every step so far
    history     one record per finished epoch: the lines of log.jsonl
    """

    model: Module
    optimizer: Optimizer
    identity: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # spent so far, evaluation included, over all sessions
    epoch_seconds: float = 0.0  # spent in this epoch on training
    epoch_images: int = 0
    record: dict[str, Any] = field(default_factory=dict)  # the last line of log.jsonl

    @property
    def step(self) -> int:
        """The number of optimiser steps done."""
        return len(self.losses)

    @property
    def epoch(self) -> int:
        """The number of epochs finished; the epoch in progress counts from 0 too."""
        return len(self.history)

    @property
    def batch(self) -> int:
        """The number of batches done in the epoch in progress."""
        return self.step - (self.history[-1]["step"] if self.history else 0)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl: `history`, and until the rest of it has been done that of an epoch cut short."""
        return self.history if self.record in ({}, *self.history) else [*self.history, self.record]

    def save(self, path: Path) -> None:
        """Write everything to `path`, atomically.

        Raises `TrainingError`, and leaves the old file, if a weight is not finite; `OSError` if it cannot be written.
        """
        arrays = {
            **{f"model.{name}": array for name, array in self.model.state_dict().items()},
            **{f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()},
        }
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise TrainingError(f"step {self.step}: {name} is not finite; nothing was saved")
        arrays["losses"] = np.array(self.losses, np.float64)
        arrays["accuracies"] = np.array(self.accuracies, np.float64)
        info = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "identity": self.identity,
            "settings": self.settings,
            "history": self.history,
            "seconds": self.seconds,
            "epoch_seconds": self.epoch_seconds,
            "epoch_images": self.epoch_images,
            "rng": default_generator().bit_generator.state,
        }
        checkpoint.save(path, arrays, info)

    def restore(self, path: Path) -> dict[str, Any]:
        """Go back to what `save` wrote, and return the settings noted there.

        Raises `CheckpointError` if the file is damaged or of another run.
        """
        arrays, info = checkpoint.load(path)
        checkpoint.check_is_state(path, info)
        try:
            for name, wanted in self.identity.items():
                found = info["identity"].get(name)
                if found != wanted:
                    raise checkpoint.CheckpointError(f"{path}: its {name} is {found}, this run's is {wanted}")
            if info["step"] != len(arrays["losses"]) or info["step"] != len(arrays["accuracies"]):
                raise ValueError(f"{info['step']} steps, but {len(arrays['losses'])} losses")
            self.model.load_state_dict(_below("model.", arrays))
            self.optimizer.load_state_dict(_below("optimizer.", arrays))
            default_generator().bit_generator.state = info["rng"]
            self.losses, self.accuracies = arrays["losses"].tolist(), arrays["accuracies"].tolist()
            self.history, self.seconds = info["history"], info["seconds"]
            self.epoch_seconds, self.epoch_images = info["epoch_seconds"], info["epoch_images"]
            self.record = self.history[-1] if self.history else {}
            return info["settings"]
        except checkpoint.CheckpointError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" ...")
            raise checkpoint.CheckpointError(f"{path}: not a training state that fits ({reason})") from error


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def fit(
    training: Training,
    train_batches: Loader,
    test_batches: Loader,
    schedule: Schedule,
    epochs: int,
    *,
    label_smoothing: float = 0.0,
    stop: Stop | None = None,
    folder: RunFolder | None = None,
    log: Callable[[str], None] = say,
    advice: Callable[[float], str] | None = None,
    graph: bool | None = None,
) -> Evaluation:
    """Train until `epochs` epochs are done in all, or `stop` says so; return the evaluation at the end.

    training  where to begin, and where the end is found; a resumed one goes on with the next batch
    schedule  from the step to the learning rate
    stop      limits of this session; at least one step is done
    folder    where to keep checkpoints and the log, if anywhere
    advice    what to say, given the seconds that an epoch will take, once the first steps have been timed
    graph     on a GPU, replay the step as a CUDA graph: True, False, or None for wherever that is safe

    After each epoch the model is evaluated on `test_batches`, a record added to `training.history`, and a checkpoint
    written. Raises `TrainingError` for a loss that is not finite, `Interrupted` after Ctrl-C or SIGTERM, and
    `OSError` when a checkpoint cannot be written.
    """
    stop = stop or Stop()
    training.model.train()
    step = _make_step(training, label_smoothing, graph)
    evaluation = None
    while training.epoch < epochs:
        _train_epoch(training, train_batches, schedule, epochs, step, stop, folder, log, advice)
        advice = None  # is given once
        if not stop.interrupted:
            evaluation = _evaluate(training, test_batches, stop)
        if stop.interrupted:  # before or during the evaluation
            break

        training.record = _record(training, len(train_batches), evaluation)
        log(_epoch_line(training.record, epochs))
        if training.batch == len(train_batches):
            training.history = training.records
            training.epoch_seconds, training.epoch_images = 0.0, 0
        if folder:
            folder.save(training)
            folder.write_log(training.records)
        if stop.reason():
            break

    if evaluation is None and not stop.interrupted:  # there was nothing left to train
        evaluation = _evaluate(training, test_batches, stop)
    if stop.interrupted:
        if folder:
            folder.save(training)
        raise Interrupted(f"interrupted after step {training.step}")
    return evaluation


def _evaluate(training: Training, batches: Loader, stop: Stop) -> Evaluation:
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # as in _train_epoch
        evaluation = evaluate(training.model, batches, stop.evaluation_seconds(), lambda: stop.interrupted)
    training.seconds += time.monotonic() - start
    if not math.isfinite(evaluation.loss):
        raise TrainingError(
            f"step {training.step}: the test loss is {evaluation.loss}; a lower learning rate (--lr) is the usual cure"
        )
    return evaluation


class HostStep:
    """A step of training whose result is looked at right away."""

    read_every = 1

    def __init__(self, training: Training, label_smoothing: float):
        self.training, self.label_smoothing = training, label_smoothing
        self.pending = 0
        self._result = (0.0, 0.0)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Around the loop that calls it; here for the sake of DeviceStep."""
        yield

    def __call__(self, x: Array, y: Array, lr: float) -> None:
        """One step of training: this is all of it. x (N,H,W,3), y (N,)."""
        model, optimizer = self.training.model, self.training.optimizer
        logits = model(Tensor(x))  # (N,K)
        loss = F.cross_entropy(logits, y, self.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):  # before the step, while the weights still are those that made it
            raise TrainingError(_explain(self.training.step + 1, value, model, x))
        optimizer.lr = lr
        optimizer.step()
        self._result = value, float((logits.data.argmax(axis=1) == y).sum()) / len(y)
        self.pending = 1

    def read(self) -> list[tuple[float, float]]:
        """(loss, accuracy) of the step."""
        self.pending = 0
        return [self._result]


def _make_step(training: Training, label_smoothing: float, graph: bool | None) -> HostStep | DeviceStep:
    device = next(training.model.parameters()).device
    if kernels.in_use(device) == "cuda":
        return DeviceStep(training.model, training.optimizer, label_smoothing, graph)
    if graph:
        raise ValueError(f"graph: CUDA graphs need the CUDA kernels, in use are {kernels.in_use(device)} on {device!r}")
    return HostStep(training, label_smoothing)


def _train_epoch(
    training: Training,
    train_batches: Loader,
    schedule: Schedule,
    epochs: int,
    step: HostStep | DeviceStep,
    stop: Stop,
    folder: RunFolder | None,
    log: Callable[[str], None],
    advice: Callable[[float], str] | None,
) -> None:
    """The batches of the epoch in progress that are still to do; fewer if `stop` says so."""
    progress = Progress(f"epoch {training.epoch + 1}/{epochs}", len(train_batches), training.batch, log)
    saved = last = time.monotonic()
    timed: list[float] = []  # seconds of the first steps of this session
    sizes: list[int] = []  # images in the steps whose results have not been read
    with progress, warnings.catch_warnings(), step.active():
        # NumPy's warnings about overflow would come before the check that says in which layer it happened. Not by
        # np.errstate: that is for one thread, and the CPU kernels have several.
        warnings.simplefilter("ignore", RuntimeWarning)
        remaining = len(train_batches) - training.batch
        for x, y in train_batches.epoch(training.epoch, start=training.batch):
            step(x, y, schedule(training.step + step.pending))
            sizes.append(len(y))
            remaining -= 1
            stop.steps += 1
            if step.pending < step.read_every and remaining and not stop.reason():
                continue

            for (value, accuracy), images in zip(step.read(), sizes):
                if not math.isfinite(value):
                    raise TrainingError(_explain_late(training.step + 1, value))
                training.losses.append(value)
                training.accuracies.append(accuracy)
                training.epoch_images += images
                progress.update(value, accuracy, images)
            now = time.monotonic()
            timed.append((now - last) / len(sizes))
            training.epoch_seconds += now - last
            training.seconds += now - last
            last = now
            sizes.clear()
            if advice and len(timed) == WARM_UP + MEASURED:
                log(advice(sum(timed[WARM_UP:]) / MEASURED * len(train_batches)))
            if folder and now - saved > SAVE_SECONDS:
                folder.save(training)
                saved = now
            if stop.reason():
                break


def _record(training: Training, batches: int, evaluation: Evaluation) -> dict[str, Any]:
    """A line of log.jsonl. `epoch` counts finished epochs; it has a fraction in an epoch that was cut short."""
    begin = training.step - training.batch
    done = training.batch / batches
    return {
        "epoch": training.epoch + (1 if done == 1 else round(done, 6)),
        "step": training.step,
        "loss": float(np.mean(training.losses[begin:])),
        "accuracy": float(np.mean(training.accuracies[begin:])),
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy,
        "test_images": len(evaluation.labels),
        "lr": training.optimizer.lr,
        "images_per_second": training.epoch_images / max(training.epoch_seconds, 1e-9),
        "seconds": training.epoch_seconds,
    }


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {record['epoch']:.4g}/{epochs}: loss {record['loss']:.4f}, accuracy {100 * record['accuracy']:.2f} %, "
        f"test loss {record['test_loss']:.4f}, test accuracy {100 * record['test_accuracy']:.2f} %, "
        f"{record['images_per_second']:.4g} images/s, lr {record['lr']:.4g}, {format_seconds(record['seconds'])}"
    )


def _explain(step: int, loss: float, model: Module, x: Array) -> str:
    """One line on a loss that is not finite."""
    return (
        f"step {step}: the loss is {loss}; {first_nonfinite_layer(model, x)}; "
        "a lower learning rate (--lr) is the usual cure"
    )


def _explain_late(step: int, loss: float) -> str:
    """The same for a loss that was read some steps after it was made."""
    return f"step {step}: the loss is {loss}, and the weights with it; a lower learning rate (--lr) is the usual cure"


def first_nonfinite_layer(model: Module, x: Array) -> str:
    """Where NaN or infinity first appears when the batch `x` goes through `model`, in words.

    The forward pass is run again, so the running statistics of batch norm move.
    """

    def finite(array: Array) -> bool:
        return bool(module_of(array).isfinite(array).all())

    if not finite(x):
        return "the input images are not finite"
    names = {module: name for name, module in model.named_modules()}
    found = []

    def look(module: Module, inputs: tuple, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not finite(output.data):
            found.append(module)

    with no_grad(), observe(look):  # a layer is observed before the module that contains it: its output was earlier
        model(Tensor(x))
    if not found:
        return "the outputs of all layers are finite, so it is the loss itself that overflows"
    layer = found[0]
    why = "" if all(finite(p.data) for p in layer.parameters()) else ", whose weights are not finite either"
    name = names[layer] or "the model itself"
    return f"the first layer whose output is not finite is {name} ({type(layer).__name__}){why}"
