"""Weights on disk: state dicts in and out.

A state dict is {name: array} in PyTorch's names and layouts (see nn/module.py), so a file written here fits
torchvision's networks and the reverse.

Reading order: any time after nn/module.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from minires.nn import Module

FORMATS = (".safetensors", ".npz")


class WeightsError(ValueError):
    """A file of weights that cannot be read; the message names the file and what is wrong with it."""


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} from a .safetensors or .npz file.

    Raises `FileNotFoundError` when there is no such file and `WeightsError` when it is damaged or of another format.
    """
    path = Path(path)
    _check_format(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # safetensors, zipfile and NumPy each raise their own kinds
        raise WeightsError(f"{path}: not a readable {path.suffix} file ({error})") from error


def save_weights(model: Module | Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write a module's state dict, or a given {name: array}, to a .safetensors or .npz file."""
    path = Path(path)
    _check_format(path)
    state = model.state_dict() if hasattr(model, "state_dict") else model
    state = {name: np.array(array, order="C") for name, array in state.items()}  # safetensors writes raw memory
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(state, path)
    else:
        np.savez(path, **state)


def _check_format(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise WeightsError(f"{path}: unknown kind of file {path.suffix!r}, expected {' or '.join(FORMATS)}")
