"""Weights on disk: round trips, what is said aloud, and files that are no weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import minires as mr
from minires import models
from minires.weights import read_metadata


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, in any order, with the same types and the same bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def quiet(line: str) -> None:
    raise AssertionError(f"said {line!r}")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt"])
def test_round_trip_of_a_network_is_bit_exact(tmp_path, suffix):
    model = models.resnet20()
    path = tmp_path / f"weights{suffix}"
    mr.save_weights(model, path)
    state = mr.load_weights(path, log=quiet)
    assert_same(state, model.state_dict())
    models.resnet20().load_state_dict(state)


def test_every_type_in_every_format(kind, state, make, write):
    """The kind of file is told by its content."""
    state["nan"] = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], np.uint32).view(np.float32)  # a NaN's payload too
    assert_same(mr.load_weights(write(make(kind, state)), log=quiet), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_arrays_that_are_not_contiguous(tmp_path, suffix):
    array = np.arange(24.0).reshape(2, 3, 4).T[::2]
    mr.save_weights({"a": array}, tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(mr.load_weights(tmp_path / f"x{suffix}")["a"], array)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_loading_then_saving_to_the_same_file(tmp_path, suffix):
    """The arrays are views of a mapped file: were it written to rather than replaced, they would change or crash."""
    path = tmp_path / f"x{suffix}"
    mr.save_weights({"a": np.arange(1e5)}, path)
    state = mr.load_weights(path)
    state["a"] += 1  # a private copy of what is written to: the file does not change
    np.testing.assert_array_equal(mr.load_weights(path)["a"], np.arange(1e5))
    mr.save_weights({"a": state["a"][:10]}, path)
    np.testing.assert_array_equal(state["a"], np.arange(1e5) + 1)
    np.testing.assert_array_equal(mr.load_weights(path)["a"], np.arange(10) + 1)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_of_either_order_and_byte_order(tmp_path, order):
    array = np.asarray(np.arange(6, dtype=">f4").reshape(2, 3), order=order)
    np.savez(tmp_path / "x.npz", a=array)
    found = mr.load_weights(tmp_path / "x.npz")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_the_library_reads_our_safetensors_and_we_its_bfloat16(tmp_path, write):
    from safetensors import numpy as library

    mr.save_weights({"a": np.arange(3.0)}, tmp_path / "x.safetensors", metadata={"note": "text"})
    np.testing.assert_array_equal(library.load_file(tmp_path / "x.safetensors")["a"], [0, 1, 2])
    assert read_metadata(tmp_path / "x.safetensors") == {"note": "text"}
    values = np.array([1.0, -2.5, 3.140625, np.inf], np.float32)  # these have 7 bits of fraction at most
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = b'{"b":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
    path = write(len(header).to_bytes(8, "little") + header + halves.tobytes())
    found = mr.load_weights(path)["b"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_metadata_is_for_safetensors(tmp_path):
    with pytest.raises(mr.WeightsError, match=r"only a .safetensors file can hold metadata"):
        mr.save_weights({}, tmp_path / "x.pth", metadata={"a": "b"})
    mr.save_weights({}, tmp_path / "x.pth")
    assert read_metadata(tmp_path / "x.pth") == {}
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_metadata(tmp_path / "y.safetensors")


# Prefixes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "asked", "left", "said"),
    [
        (["module.a", "module.b"], True, ["a", "b"], ["took 'module.' from the beginning of 2 names"]),
        (["module._orig_mod.a"], True, ["a"], ["took 'module.'", "took '_orig_mod.'"]),
        (["a", "module.b"], True, ["a", "module.b"], []),  # not all of them: it may be a part of the model called so
        (["net.a", "b"], "net.", ["a", "b"], ["took 'net.' from the beginning of 1 names"]),
        (["module.a"], False, ["module.a"], []),
    ],
)
def test_prefixes_are_taken_away_on_request_and_aloud(tmp_path, names, asked, left, said):
    lines: list[str] = []
    mr.save_weights({name: np.ones(1) for name in names}, tmp_path / "x.npz")
    state = mr.load_weights(tmp_path / "x.npz", strip_prefix=asked, log=lines.append)
    assert list(state) == left
    assert len(lines) == len(said)
    assert all(word in line for word, line in zip(said, lines))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"], "no name begins with 'net.', they are like 'a'"), (["a", "net.a"], "two names would be the same")],
)
def test_prefixes_that_cannot_be_taken_away(tmp_path, names, message):
    mr.save_weights({name: np.ones(1) for name in names}, tmp_path / "x.npz")
    with pytest.raises(mr.WeightsError, match=message):
        mr.load_weights(tmp_path / "x.npz", strip_prefix="net.")


# Files that are no weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_missing_file(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        mr.load_weights(tmp_path / f"x{suffix}")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "a web page"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b"\x00" * 100, "not a readable file of weights"),
        (b"PK\x03\x04junk", "not a readable zip file"),
        (b"\xff" * 8, "not a readable file of weights"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "expected safetensors, .npz or PyTorch's"),
        (pickle.dumps({"a": 1}), "not one of torch.save"),
        (pickle.dumps({"a": np.ones(3)}), r"asks for numpy"),
        (b"\x80\x02", "truncated"),
    ],
)
def test_other_files(write, content, word):
    with pytest.raises(mr.WeightsError, match=word) as caught:
        mr.load_weights(write(content))
    assert "weights.bin: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_noticed(kind, state, make, write):
    content = make(kind, state)
    for length in range(0, len(content), 7):
        with pytest.raises(mr.WeightsError):
            mr.load_weights(write(content[:length]))


def test_unknown_format(tmp_path):
    with pytest.raises(mr.WeightsError, match=r"unknown kind of file '.h5', expected .safetensors, .npz, .pth, .pt"):
        mr.save_weights({}, tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": np.array(["text"])}, "'a' is <U4, expected a name and an array of numbers"),
        ({"a": np.array([{}])}, "'a' is object"),
        ({3: np.ones(1)}, "3 is float64, expected a name"),
        ({"a": np.ones(1, np.uint16)}, "a is uint16, expected one of float32"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path, state, message):
    (tmp_path / "x.pth").write_bytes(b"old")
    with pytest.raises(mr.WeightsError, match=message):
        mr.save_weights(state, tmp_path / "x.pth")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_only_checkpoints_have_keys(tmp_path, suffix):
    mr.save_weights({"a": np.zeros(2)}, tmp_path / f"x{suffix}")
    with pytest.raises(mr.WeightsError, match="key is 'model', but the file is not one of PyTorch's checkpoints"):
        mr.load_weights(tmp_path / f"x{suffix}", key="model")
