"""Weights on disk."""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
from minires import models


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_round_trip_is_bit_exact(tmp_path, suffix):
    model = models.resnet20()
    path = tmp_path / f"weights{suffix}"
    mr.save_weights(model, path)
    state = mr.load_weights(path)
    original = model.state_dict()
    assert set(state) == set(original)
    for name, array in original.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array)
    models.resnet20().load_state_dict(state)


def test_a_dict_with_transposed_arrays(tmp_path):
    array = np.arange(6.0).reshape(2, 3).T
    mr.save_weights({"a": array}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(mr.load_weights(tmp_path / "x.safetensors")["a"], array)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        mr.load_weights(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x00" * 100, b"PK\x03\x04junk", b"\xff" * 8])
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(mr.WeightsError, match="not a readable"):
        mr.load_weights(path)


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.array([{"code": 1}], dtype=object))
    with pytest.raises(mr.WeightsError, match="not a readable"):
        mr.load_weights(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "x.safetensors"
    mr.save_weights(models.resnet20(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(mr.WeightsError):
        mr.load_weights(path)


def test_unknown_format(tmp_path):
    with pytest.raises(mr.WeightsError, match=r"unknown kind of file '.h5', expected .safetensors or .npz"):
        mr.save_weights({}, tmp_path / "x.h5")
