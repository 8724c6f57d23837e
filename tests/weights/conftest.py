"""Files of weights as PyTorch, NumPy and safetensors write them, without PyTorch."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires.weights import torch_reader
from minires.weights.torch_writer import pickle_of


def legacy_file(state: dict[str, np.ndarray], pickled: bytes | None = None) -> bytes:
    """The layout of torch.save(..., _use_new_zipfile_serialization=False); test_torch.py has real ones."""
    keys = [str(key) for key in range(len(state))]
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(torch_reader.MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps(system, 2)]
    parts += [pickle_of(state) if pickled is None else pickled, pickle.dumps(keys, 2)]
    for array in state.values():
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    return b"".join(parts)


def make_file(kind: str, state: dict[str, np.ndarray], folder: Path) -> bytes:
    """The bytes of a file of weights: "safetensors", "npz", "npz, compressed", "pth", or "pth, legacy"."""
    if kind == "pth, legacy":
        return legacy_file(state)
    if kind == "npz, compressed":
        out = io.BytesIO()
        np.savez_compressed(out, **state)
        return out.getvalue()
    path = folder / f"made.{kind}"
    mr.save_weights(state, path)
    return path.read_bytes()


KINDS = ("safetensors", "npz", "npz, compressed", "pth", "pth, legacy")


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    """A small state dict with every kind of entry."""
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "bn1.weight": rng.standard_normal(4),
        "bn1.num_batches_tracked": np.array(7, np.int64),
        "mask": np.array([True, False, True]),
        "half": rng.standard_normal((2, 3)).astype(np.float16),
        "bytes": np.arange(5, dtype=np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "fc.bias": rng.standard_normal(7).astype(np.float32),
    }


@pytest.fixture
def write(tmp_path):
    """Writes bytes to a file whose name says nothing, and returns its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "weights.bin"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def make(tmp_path):
    return lambda kind, state: make_file(kind, state, tmp_path)
