"""The folder of a run: which files it holds, and how they are kept from being overwritten by accident.

    config.json         all settings, and the commands: the first, and each that resumed the run
    log.jsonl           one line per epoch
    state.safetensors   everything needed to resume; complete on its own
    last.safetensors    the weights alone, in PyTorch's names and layouts, for use elsewhere
    best.safetensors    those of the best epoch, where they are asked for (best.py)
    results.json        the final losses, accuracies and times
    curves.png  confusion.png  mistakes.png

Reading order: after progress.py. Next: best.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from minires.train import checkpoint
from minires.train.training import Training

STATE, WEIGHTS, BEST = "state.safetensors", "last.safetensors", "best.safetensors"


class RunFolder:
    """The files of one run, under `path`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.state, self.weights, self.config = self.path / STATE, self.path / WEIGHTS, self.path / "config.json"
        self.best = self.path / BEST
        self.log, self.results = self.path / "log.jsonl", self.path / "results.json"

    @property
    def is_used(self) -> bool:
        """Whether the folder holds a saved run, or the small files of one whose large files were deleted."""
        if any(path.exists() for path in (self.state, self.weights, self.best, self.results)):
            return True
        return self.log.exists() and self.log.stat().st_size > 0  # it is empty until the first epoch has been saved

    def prepare(self, state_bytes: int = 0, weights_bytes: int = 0) -> None:
        """Make the folder, and check before hours of training that files can be written to it.

        Raises `OSError` naming the folder if it cannot be made or written to, or if there is no room for the weights
        and for two states: a new state is written beside the old one before replacing it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe.tmp"
            probe.write_bytes(b"x")
            probe.unlink()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        present = sum(file.stat().st_size for file in (self.state, self.weights) if file.exists())
        needed = 2 * state_bytes + weights_bytes - present
        if free < needed:
            sizes = f"{free / 1e6:,.1f} MB are free, checkpoints need {needed / 1e6:,.1f} MB"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {sizes}", str(self.path))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write config.json or results.json. Raises `OSError`."""
        checkpoint.write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def write_log(self, records: list[dict[str, Any]]) -> None:
        """Write log.jsonl anew: after a resume, a log that is only appended to would hold some epochs twice."""
        lines = "".join(json.dumps(record) + "\n" for record in records)
        checkpoint.write_atomically(self.log, lines.encode())

    def commands(self) -> list[str]:
        """The commands that have trained here so far, from config.json; [] without that file."""
        try:
            config = json.loads(self.config.read_text())
        except (OSError, ValueError):
            return []
        commands = config.get("commands") if isinstance(config, dict) else None
        return commands if isinstance(commands, list) else []

    def save(self, training: Training) -> None:
        """Write the state, then the weights. A crash between the two loses nothing: the state is complete.

        Raises `TrainingError` for weights that are not finite, and `OSError`; the old files are intact then.
        """
        training.save(self.state)
        self.save_weights(training, self.weights)

    def save_weights(self, training: Training, path: Path, about: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write the model's weights to `path`, with the notes that `minires predict` needs, and with `about`."""
        info = {
            "step": training.step,
            "epoch": training.epoch,
            "settings": training.settings,
            **training.notes,
            **about,
        }
        checkpoint.save(path, training.model.state_dict(), info)


def new_run(base: str | Path) -> RunFolder:
    """The first of base, base-2, base-3, ... that holds no run."""
    base, number = Path(base), 1
    while (folder := RunFolder(base if number == 1 else f"{base}-{number}")).is_used or folder.config.exists():
        number += 1
    return folder


def latest_run(base: str | Path) -> RunFolder:
    """The most recently saved of base, base-2, base-3, ... Raises `CheckpointError` when there is none."""
    base = Path(base)
    numbered = [path for path in base.parent.glob(f"{base.name}-*") if path.name[len(base.name) + 1 :].isdecimal()]
    saved = [folder for folder in map(RunFolder, [base, *numbered]) if folder.state.exists()]
    if not saved:
        raise checkpoint.CheckpointError(f"{base / STATE}: there is no such file, so nothing to resume")
    return max(saved, key=lambda folder: folder.state.stat().st_mtime)


def state_file(path: str | Path) -> Path:
    """The file to resume from: the state in the folder `path`, or `path` itself if it is a file."""
    return RunFolder(path).state if Path(path).is_dir() else Path(path)


def weights_file(path: str | Path) -> Path:
    """The file of weights: in the folder `path` of a run the best, or else the last; or the file `path` itself."""
    if not Path(path).is_dir():
        return Path(path)
    folder = RunFolder(path)
    return folder.best if folder.best.exists() else folder.weights
