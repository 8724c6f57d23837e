"""All that changes in the course of training, as one object. A checkpoint is this object on disk.

Nothing else has to be kept: batches are a pure function of (seed, epoch, index), the learning rate is one of the step.
A run that was stopped anywhere and resumed ends with the same weights, bit for bit, as a run that was not stopped, on
NumPy with the same number of threads.

Reading order: after evaluate.py. Next: loop.py.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minires.device import default_generator
from minires.nn import Module
from minires.optim import Optimizer
from minires.train import checkpoint
from minires.train.nonfinite import TrainingError


@dataclass(repr=False)
class Training:
    """Everything that changes in the course of training.

    identity    the settings that a checkpoint must share to be restored: depth, data set, seed, ...
    settings    all settings of the run, noted in the checkpoint for the reader
    notes       `dataset.notes()`: kept beside the weights, for `minires predict`
    losses      one per step so far
    accuracies  one per step so far, on the step's batch
    history     one record per finished epoch: the lines of log.jsonl
    """

    model: Module
    optimizer: Optimizer
    identity: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # spent over all sessions, evaluation included
    epoch_seconds: float = 0.0  # spent in this epoch on training
    epoch_images: int = 0
    record: dict[str, Any] = field(default_factory=dict)  # the last line of log.jsonl

    def __repr__(self) -> str:
        return f"Training({type(self.model).__name__}: {self.epoch} epochs and {self.step} steps done)"

    @property
    def step(self) -> int:
        """The number of optimiser steps done."""
        return len(self.losses)

    @property
    def epoch(self) -> int:
        """The number of epochs finished, which is the index of the epoch in progress."""
        return len(self.history)

    @property
    def batch(self) -> int:
        """The number of batches done in the epoch in progress."""
        return self.step - (self.history[-1]["step"] if self.history else 0)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl: one for each finished epoch, and one for an epoch that was cut short."""
        return self.history if self.record in ({}, *self.history) else [*self.history, self.record]

    def add_step(self, loss: float, accuracy: float, images: int) -> None:
        """Note a step on `images` images: its loss, and its accuracy from 0 to 1."""
        self.losses.append(loss)
        self.accuracies.append(accuracy)
        self.epoch_images += images

    def add_time(self, seconds: float) -> None:
        """Add `seconds` to the training time."""
        self.epoch_seconds += seconds
        self.seconds += seconds

    def end_epoch(self) -> None:
        """Finish the epoch in progress: `record` is its line."""
        self.history = self.records
        self.epoch_seconds, self.epoch_images = 0.0, 0

    def save(self, path: Path) -> None:
        """Write everything to `path`, atomically.

        Raises `TrainingError` for a weight that is not finite, and leaves the old file; `OSError` if writing fails.
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
        """Go back to the state that `save` wrote; return the settings noted there.

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
