"""Weights on disk: state dicts in and out, in safetensors, in NumPy's .npz and in PyTorch's own format.

A state dict is {name: array} in PyTorch's names and layouts (see nn/module.py), so a file written here fits
torchvision's networks and the reverse. A file from elsewhere is not trusted: the readers check every size before they
use it, run nothing, and raise `WeightsError` for all they cannot read.

Reading order: any time after nn/module.py: mapped.py (bytes as arrays), archive.py, torch_reader.py, torch_writer.py,
safetensors_reader.py, npz_reader.py. Next: models/pretrained.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minires.files.atomic import atomic
from minires.weights import npz_reader, safetensors_reader, torch_reader, torch_writer
from minires.weights.archive import Archive
from minires.weights.mapped import WeightsError, map_file

if TYPE_CHECKING:
    from minires.nn import Module

__all__ = ["WeightsError", "load_weights", "read_metadata", "save_weights", "strip_prefixes"]

WRITTEN = (".safetensors", ".npz", ".pth", ".pt")
PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def load_weights(
    path: str | Path,
    *,
    strip_prefix: str | bool = False,
    key: str | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, np.ndarray]:
    """{name: array} from a safetensors file, an .npz, or a PyTorch checkpoint of either layout, told by its content.

    strip_prefix  a text to take from the beginning of all names that have it; True for "module." and "_orig_mod.",
                  which DataParallel and torch.compile put there
    key           of the dict to read in a PyTorch checkpoint that holds several, such as "model_ema"; default: the only
                  dict with tensors, or the only one with a usual key, such as "state_dict"
    log           is told what was done to get at the weights: prefixes, and the dict they were found in

    The file is mapped into memory, and the arrays are views of it where the format allows: loading takes no time, and
    bytes are read when they are used. Writing to an array does not change the file. bfloat16 becomes float32.

    Raises `FileNotFoundError` when there is no such file and `WeightsError` for one that is damaged, suspicious, or of
    another format. No code in the file is run, and no more memory taken than twice its size (small files: 16 MiB).
    A change within the numbers is not noticed: no format has a checksum that PyTorch writes in every case.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    state = _read(path, map_file(path), key, log)
    return strip_prefixes(state, strip_prefix, path, log) if strip_prefix else state


def _read(path: Path, buffer: memoryview, key: str | None, log: Callable[[str], None]) -> dict[str, np.ndarray]:
    start = bytes(buffer[:64])
    archive = Archive(path, buffer) if start[:4] in (b"PK\x03\x04", b"PK\x05\x06") else None
    is_safetensors = safetensors_reader.is_safetensors(buffer)
    if archive and any(name == "data.pkl" or name.endswith("/data.pkl") for name in archive.members):
        return torch_reader.read_zip(path, archive, key, log)
    if start.startswith(b"\x80") and not is_safetensors:
        return torch_reader.read_legacy(path, buffer, key, log)
    if key is not None:
        raise WeightsError(f"{path}: key is {key!r}, but the file is not one of PyTorch's checkpoints, which have keys")
    if archive:
        return npz_reader.read(path, archive)
    if is_safetensors:
        return safetensors_reader.read(path, buffer)
    kind = f"beginning with {start[:8]!r}"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        kind = "a web page (HTML)"
    raise WeightsError(f"{path}: not a readable file of weights but {kind}; expected safetensors, .npz or PyTorch's")


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its weights; {} for other formats. Raises as `load_weights`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    buffer = map_file(path)
    return safetensors_reader.metadata(path, buffer) if safetensors_reader.is_safetensors(buffer) else {}


def strip_prefixes(
    state: Mapping[str, np.ndarray], prefix: str | Literal[True], path: Path, log: Callable[[str], None] = print
) -> dict[str, np.ndarray]:
    """`state` without `prefix` (True: without those in PREFIXES, if all names have them), and a word about it to `log`.

    Raises `WeightsError` if no name has the prefix that was asked for, or two names would become one.
    """
    state = dict(state)
    for candidate in PREFIXES if prefix is True else (prefix,):
        having = [name for name in state if name.startswith(candidate)]
        if prefix is True and len(having) < max(len(state), 1):
            continue
        if not having:
            raise WeightsError(f"{path}: no name begins with {prefix!r}, they are like {next(iter(state), 'none')!r}")
        stripped = {name.removeprefix(candidate): array for name, array in state.items()}
        if len(stripped) != len(state):
            raise WeightsError(f"{path}: without {candidate!r} two names would be the same")
        log(f"{path}: took {candidate!r} from the beginning of {len(having)} names")
        state = stripped
    return state


def save_weights(
    model: Module | Mapping[str, np.ndarray],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a module's state dict, or a given {name: array}, to a .safetensors, .npz, .pth or .pt file.

    metadata  texts to go with the weights, in a .safetensors file alone
    notes     anything JSON can hold, likewise: `dataset.notes()` says how `minires predict` has to prepare a picture,
              and what the classes are called

    `torch.load(path, weights_only=True)` reads .pth and .pt. The file is replaced as a whole or not at all. Raises
    `WeightsError` for another suffix or for what the format cannot hold, and `OSError` when the file cannot be written.
    """
    if notes:
        try:
            text = json.dumps(dict(notes), default=lambda array: array.tolist())
        except (TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{path}: notes are not what JSON can hold ({error})") from None
        metadata = {**(metadata or {}), "minires": text}
    path = Path(path)
    if path.suffix not in WRITTEN:
        raise WeightsError(f"{path}: unknown kind of file {path.suffix!r}, expected {', '.join(WRITTEN)}")
    if metadata and path.suffix != ".safetensors":
        raise WeightsError(f"{path}: only a .safetensors file can hold metadata and notes")
    given = model if isinstance(model, Mapping) else model.state_dict()
    state: dict[str, Any] = {name: np.asarray(array) for name, array in given.items()}
    for name, array in state.items():
        if type(name) is not str or array.dtype.kind not in "fiubc":
            raise WeightsError(f"{path}: {name!r} is {array.dtype}, expected a name and an array of numbers")
    with atomic(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save

            contiguous = {name: np.array(array, order="C") for name, array in state.items()}  # it writes raw memory
            file.write(save(contiguous, dict(metadata) if metadata else None))
        elif path.suffix == ".npz":
            np.savez(file, **state)
        else:
            torch_writer.write(path, file, state)
