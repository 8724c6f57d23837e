"""Files are written whole or not at all, and a damaged one is refused with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from minires.train.checkpoint import (
    CheckpointError,
    load,
    load_model_weights,
    read_info,
    save,
    saved_settings,
    write_atomically,
)

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64), "c": np.array([0.1, np.pi])}


def test_arrays_and_note_come_back_exactly(tmp_path):
    info = {"losses": [0.1, 1e-300], "big": 2**127 + 1, "none": None, "nested": {"text": "ä"}}
    save(tmp_path / "x", ARRAYS, info)
    arrays, found = load(tmp_path / "x")
    assert found == info
    assert read_info(tmp_path / "x") == info
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_transposed_arrays_are_written_as_they_look(tmp_path):
    save(tmp_path / "x", {"t": ARRAYS["a"].T}, {})
    np.testing.assert_array_equal(load(tmp_path / "x")[0]["t"], ARRAYS["a"].T)


def test_no_temporary_file_stays(tmp_path):
    write_atomically(tmp_path / "x", b"old")
    write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, function, error):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)) as caught:
        write_atomically(path, b"new")
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    """A real failure of the operating system: files of this process may not grow beyond 10 kB."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "x"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_atomically(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    """A process that does nothing but save is killed, five times, without a chance to clean up."""
    path = tmp_path / "state"
    code = (
        "import sys, numpy as np; from minires.train.checkpoint import save\n"
        "for i in range(10**6): save(sys.argv[1], {'a': np.full(500_000, i, 'f4'), 'b': np.full(9, i)}, {'i': i})"
    )
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        path.unlink(missing_ok=True)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        arrays, info = load(path)
        assert (arrays["a"] == info["i"]).all()
        assert (arrays["b"] == info["i"]).all()


@pytest.mark.parametrize("length", [0, 5, 100, 300, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "x"
    save(path, ARRAYS, {"note": "x" * 200})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        saved_settings(tmp_path / "missing")
    save_file(ARRAYS, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not written by a training run"):
        load(tmp_path / "foreign")
    save_file(ARRAYS, tmp_path / "strange", metadata={"minires": "[1]"})
    with pytest.raises(CheckpointError, match="note on the run is damaged"):
        load(tmp_path / "strange")
    assert saved_settings(tmp_path / "foreign") == {}
    save(tmp_path / "own", ARRAYS, {"settings": {"depth": 20}})
    assert saved_settings(tmp_path / "own") == {"depth": 20}
    with pytest.raises(CheckpointError, match="holds weights, but no training state to resume from"):
        saved_settings(tmp_path / "own", to_resume=True)
    (tmp_path / "cut").write_bytes((tmp_path / "own").read_bytes()[:-5])
    assert saved_settings(tmp_path / "cut") == {}
    with pytest.raises(CheckpointError, match="damaged, cannot be read"):
        saved_settings(tmp_path / "cut", to_resume=True)


def test_weights_of_another_model_are_refused_in_a_short_line(new, tmp_path):
    parts = new()
    save(tmp_path / "w.safetensors", {f"layer{i}.weight": ARRAYS["a"] for i in range(500)}, {})
    with pytest.raises(CheckpointError, match=r"missing: conv\.weight") as caught:
        load_model_weights(parts.training.model, tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 600


def test_the_fingerprint_sees_images_labels_and_order(new):
    dataset = new().dataset
    base = dataset.fingerprint()
    assert base == new().dataset.fingerprint()
    images, labels = dataset.train_images.copy(), dataset.train_labels.copy()
    images[-1, -1, -1, -1] ^= 1
    labels[0] = (labels[0] + 1) % 3

    def changed(images, labels):
        return replace(dataset, train_images=images, train_labels=labels).fingerprint()

    assert len({base, changed(images, dataset.train_labels), changed(dataset.train_images, labels)}) == 3
    assert changed(dataset.train_images[::-1], dataset.train_labels[::-1]) != base
