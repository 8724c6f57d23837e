"""The training loop: forward, loss, backward, step, again.

`fit` has three levels: `Loop.run` (epochs), `Loop.train_epoch` (batches), and one step, `HostStep`. A GPU has a step of
its own (cuda/step.py), with the same result, which never waits for the device.

`Training` (training.py) holds what changes while the loop runs. `Loop` holds what does not.

Reading order: after training.py. Next: examples/train_cifar.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import minires.functional as F
from minires import kernels
from minires.data.loader import Batches
from minires.device import Array
from minires.nn import Module
from minires.optim import Optimizer
from minires.optim.schedules import Schedule
from minires.tensor import Tensor
from minires.train.evaluate import Evaluation, evaluate
from minires.train.folder import RunFolder
from minires.train.nonfinite import TrainingError, first_nonfinite_layer, no_warnings
from minires.train.progress import Progress, epoch_line, say
from minires.train.stop import Stop
from minires.train.training import Training

WARM_UP, MEASURED = 1, 3  # steps left out, then timed, to estimate an epoch's time
SAVE_SECONDS = 600  # the longest time between checkpoints, within an epoch too
CURE = "a lower learning rate (--lr) is the usual cure"
LossFunction = Callable[[Tensor, Array], Tensor]
Callback = Callable[[Training, Evaluation], "bool | None"]


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: training stopped after a complete step and wrote a checkpoint."""


def fit(
    training: Training,
    train_batches: Batches,
    test_batches: Batches,
    schedule: Schedule,
    epochs: int,
    *,
    loss: LossFunction = F.cross_entropy,
    part: str = "test",
    callbacks: Sequence[Callback] = (),
    stop: Stop | None = None,
    folder: RunFolder | None = None,
    log: Callable[[str], None] = say,
    advice: Callable[[float], str] | None = None,
    graph: bool | None = None,
) -> Evaluation:
    """Train until `epochs` epochs are done in all, or `stop` ends the session; return the evaluation at the end.

    training  the state, changed in place; a resumed state goes on with the next batch
    schedule  from the step to the learning rate
    loss      from logits (N,K) and labels (N,) to a scalar; `partial(F.cross_entropy, weight=...)` is one
    part      what `test_batches` are, "test" or "val": the record's names begin with it, as in test_accuracy
    callbacks called with `training` and the evaluation at the end of each epoch; a True ends the training. See best.py
    stop      limits of this session; at least one step is done
    folder    for checkpoints and the log; None: no files
    advice    from the seconds of an epoch to a text, logged once four steps of the first epoch are timed
    graph     on a GPU, replay the step as a CUDA graph: True, False, or None for wherever replaying is safe

    Each epoch ends with an evaluation on `test_batches`, a record in `training.history`, and a checkpoint.
    Raises `TrainingError` for a loss that is not finite, `Interrupted` after Ctrl-C or SIGTERM, and `OSError` for a
    checkpoint that cannot be written.
    """
    make_step = kernels.part("Step", next(training.model.parameters()).device) or HostStep
    step = make_step(training.model, training.optimizer, loss, graph)
    return Loop(
        training, train_batches, test_batches, schedule, epochs, step, part, callbacks,
        stop or Stop(), folder, log, advice,
    ).run()  # fmt: skip


class Step(Protocol):
    """One step of training: on the host, or on a device without waiting for the device."""

    read_every: int  # steps after which the losses are read
    pending: int  # steps whose losses have not been read

    def active(self) -> AbstractContextManager:
        """The context for all calls of an epoch."""
        ...

    def __call__(self, x: Array, y: Array, lr: float) -> None:
        """Forward, loss, backward, update, for the batch x (N,H,W,C), y (N,) at the learning rate `lr`."""

    def read(self) -> list[tuple[float, float]]:
        """(loss, accuracy) of every step since the last `read`, in order."""
        ...

    def explain(self) -> str:
        """In words, the origin of a loss that is not finite."""
        ...


class HostStep:
    """A step of training whose loss is read right away."""

    read_every = 1

    def __init__(self, model: Module, optimizer: Optimizer, loss: LossFunction, graph: bool | None = None):
        if graph:
            device = next(model.parameters()).device
            raise ValueError(
                f"graph: CUDA graphs need the CUDA kernels, in use are {kernels.in_use(device)} on {device!r}"
            )
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.pending = 0
        self._result = (0.0, 0.0)
        self._x: Array | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing to do on the host."""
        yield

    def __call__(self, x: Array, y: Array, lr: float) -> None:
        """One whole step of training. x (N,H,W,3), y (N,)."""
        logits = self.model(Tensor(x))  # (N,K)
        loss = self.loss(logits, y)  # F.cross_entropy
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.lr = lr
        value = loss.item()
        if math.isfinite(value):  # else keep the weights that gave this loss, for `explain`
            self.optimizer.step()
        self._result = value, float((logits.data.argmax(axis=1) == y).sum()) / len(y)
        self._x, self.pending = x, 1

    def read(self) -> list[tuple[float, float]]:
        """(loss, accuracy) of the step."""
        self.pending = 0
        return [self._result]

    def explain(self) -> str:
        """The first layer whose output is not finite, found by a forward pass over the last batch."""
        found = first_nonfinite_layer(self.model, self._x)
        return found or "the outputs of all layers are finite, so it is the loss itself that overflows"


@dataclass
class Loop:
    """What does not change while training runs; `fit` describes each field."""

    training: Training
    train_batches: Batches
    test_batches: Batches
    schedule: Schedule
    epochs: int
    step: Step
    part: str
    callbacks: Sequence[Callback]
    stop: Stop
    folder: RunFolder | None
    log: Callable[[str], None]
    advice: Callable[[float], str] | None

    def run(self) -> Evaluation:
        """Train, evaluate and save, epoch after epoch."""
        training, evaluation, advice = self.training, None, self.advice
        training.model.train()
        while training.epoch < self.epochs:
            self.train_epoch(advice)
            advice = None  # is given in the first epoch, if that is long enough
            if self.stop.interrupted:
                break
            evaluation = self.evaluate()
            if self.stop.interrupted or self.end_epoch(evaluation) or self.stop.reason():
                break

        if evaluation is None and not self.stop.interrupted:
            self.log(f"{training.epoch} epochs are done: nothing is left to train of {self.epochs}")
            evaluation = self.evaluate()
        if self.stop.interrupted or evaluation is None:  # None: interrupted before the first evaluation
            if self.folder:
                self.folder.save(training)
            raise Interrupted(f"interrupted after step {training.step}")
        return evaluation

    def train_epoch(self, advice: Callable[[float], str] | None) -> None:
        """Train on the remaining batches of the epoch in progress, or until `stop` gives a reason."""
        training, step = self.training, self.step
        title = f"epoch {training.epoch + 1}/{self.epochs}"
        progress = Progress(title, len(self.train_batches), training.batch, self.log, first=training.epoch == 0)
        saved = last = time.monotonic()
        timed: list[float] = []  # seconds of each step
        sizes: list[int] = []  # images in the steps whose results have not been read
        with progress, no_warnings(), step.active():
            remaining = len(self.train_batches) - training.batch
            for x, y in self.train_batches.epoch(training.epoch, start=training.batch):
                step(x, y, self.schedule(training.step + step.pending))
                sizes.append(len(y))
                remaining -= 1
                self.stop.steps += 1
                if step.pending < step.read_every and remaining and not self.stop.reason():
                    continue

                for (loss, accuracy), images in zip(step.read(), sizes):
                    if not math.isfinite(loss):
                        raise TrainingError(f"step {training.step + 1}: the loss is {loss}; {step.explain()}; {CURE}")
                    training.add_step(loss, accuracy, images)
                    progress.update(loss, accuracy, images)
                now = time.monotonic()
                training.add_time(now - last)
                timed.append((now - last) / len(sizes))
                last = now
                sizes.clear()
                if advice and len(timed) == WARM_UP + MEASURED:
                    self.log(advice(sum(timed[WARM_UP:]) / MEASURED * len(self.train_batches)))
                if self.folder and now - saved > SAVE_SECONDS:
                    self.folder.save(training)
                    saved = now
                if self.stop.reason():
                    break

    def evaluate(self) -> Evaluation:
        """Evaluate the model on the test batches."""
        training, stop, start = self.training, self.stop, time.monotonic()
        with no_warnings():
            evaluation = evaluate(
                training.model, self.test_batches, stop.evaluation_seconds(), lambda: stop.interrupted
            )
        training.seconds += time.monotonic() - start
        if not math.isfinite(evaluation.loss):
            raise TrainingError(f"step {training.step}: the {self.part} loss is {evaluation.loss}; {CURE}")
        return evaluation

    def end_epoch(self, evaluation: Evaluation) -> bool:
        """Note the epoch, or the finished part of an epoch; write the checkpoint and the log. True: stop here."""
        training = self.training
        training.record = record(training, len(self.train_batches), evaluation, self.part)
        self.log(epoch_line(training.record, self.epochs, self.part))
        if training.batch == len(self.train_batches):
            training.end_epoch()
        enough = [callback(training, evaluation) for callback in self.callbacks]
        if self.folder:
            self.folder.save(training)
            self.folder.write_log(training.records)
        return any(enough)


def record(training: Training, batches: int, evaluation: Evaluation, part: str) -> dict[str, Any]:
    """A line of log.jsonl. `epoch` counts finished epochs, with a fraction for an epoch that was cut short."""
    begin = training.step - training.batch
    done = training.batch / batches
    return {
        "epoch": training.epoch + (1 if done == 1 else round(done, 6)),
        "step": training.step,
        "loss": float(np.mean(training.losses[begin:])),
        "accuracy": float(np.mean(training.accuracies[begin:])),
        **evaluation.numbers(part),
        "lr": training.optimizer.lr,
        "images_per_second": training.epoch_images / max(training.epoch_seconds, 1e-9),
        "seconds": training.epoch_seconds,
    }
