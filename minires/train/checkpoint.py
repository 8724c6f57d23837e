"""Checkpoints: tensors and a note about them, in one safetensors file, written atomically.

ONE file, state.safetensors, holds everything that a run needs to go on. Weights and optimiser can then never come from
two different moments. After a power failure a file of a run is either the old one or the new one
(files/atomic.py).

Reading order: first of the files behind the loop. Next: stop.py.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from minires.files.atomic import atomic
from minires.nn import Module
from minires.weights import load_weights


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run. The text is one line naming the file and the reason."""


def write_atomically(path: Path, content: bytes) -> None:
    """Make `content` the content of `path`, or leave the old content.

    Raises `OSError` naming a `path` that cannot be written (no space, no permission); the old file is intact then.
    """
    with atomic(path) as file:
        file.write(content)


def save(path: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    """Write `arrays`, with `info` (anything JSON can hold) in the file's metadata. Raises `OSError`, see above."""
    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}  # safetensors writes raw memory
    write_atomically(Path(path), safetensors.save(arrays, metadata={"minires": json.dumps(info)}))


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The (arrays, info) that `save` wrote. Raises `CheckpointError` for a missing, damaged or foreign file."""
    info = read_info(path)
    try:
        return safetensors.load_file(path), info
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, cannot be read ({error})") from error


def read_info(path: Path) -> dict[str, Any]:
    """The `info` of a file that `save` wrote, without reading the arrays. Raises as `load`."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, cannot be read ({error})") from error
    try:
        info = json.loads(metadata["minires"])
    except (KeyError, json.JSONDecodeError):
        raise CheckpointError(f"{path}: a safetensors file, but not written by a training run of minires") from None
    if not isinstance(info, dict):
        raise CheckpointError(f"{path}: its note on the run is damaged")
    return info


def check_is_state(path: Path, info: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless `info` is the note in a training state."""
    if "identity" not in info:
        raise CheckpointError(f"{path}: holds weights, but no training state to resume from")


def saved_settings(path: Path, to_resume: bool = False) -> dict[str, Any]:
    """The settings noted in a state or in weights that a run wrote; {} for weights from elsewhere.

    Raises `CheckpointError` for a missing file; with `to_resume`, for anything but an intact state.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        info = read_info(path)
        if to_resume:
            check_is_state(path, info)
    except CheckpointError:
        if to_resume:
            raise
        return {}  # reading the arrays will say what is wrong
    settings = info.get("settings")
    return settings if isinstance(settings, dict) else {}


def load_model_weights(model: Module, path: str | Path) -> None:
    """Load a file of weights (.safetensors, .npz, ...) into `model`. Raises `CheckpointError` for a misfit."""
    try:
        model.load_state_dict(load_weights(path))
    except (OSError, ValueError) as error:  # WeightsError is a ValueError
        # A file of another depth differs in hundreds of names: the first few say enough.
        raise CheckpointError(f"{path}: {textwrap.shorten(str(error), 300, placeholder=' ...')}") from error
