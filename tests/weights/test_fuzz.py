"""Thousands of damaged files: a reader loads or raises its own error, and allocates no more than twice the file."""

from __future__ import annotations

import contextlib
import importlib.util
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import minires as mr

EXAMPLES = max(800, settings.default.max_examples)  # of each kind of file, by night
FEW = max(100, settings.default.max_examples)  # in any case
# What Python itself needs, whatever the size of the file: error messages, tables, the objects of a zip's list.
OVERHEAD = 1 << 18


@st.composite
def changes(draw) -> list[tuple[str, float, bytes]]:
    """What is done to a file: (kind of change, where as a share of the file, bytes)."""
    # What decides is at both ends of most files: headers at the beginning, the list of a zip at the end.
    place = st.floats(0, 1) | st.floats(0, 0.05) | st.floats(0.8, 1)
    piece = st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"(", b"R", b".", b"]"])
    piece |= st.binary(min_size=1, max_size=8)
    change = st.tuples(st.sampled_from(["set", "insert", "delete", "truncate", "repeat"]), place, piece)
    return draw(st.lists(change, min_size=1, max_size=5))


def damaged(content: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, piece in steps:
        at = int(share * max(len(content) - 1, 0))
        if kind == "set":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + len(piece) :]
        elif kind == "truncate":
            content = content[:at]
        else:
            content = content[:at] + content[at : at + 40] * piece[0] + content[at + 40 :]
    return content


def load_and_touch(path: Path) -> None:
    """Load, and read every number: a view that reached out of the file would crash here."""
    for name, array in mr.load_weights(path, strip_prefix=True, log=lambda line: None).items():
        assert type(name) is str
        assert isinstance(array, np.ndarray)
        assert array.dtype.kind in "fiubc"
        if array.size < 1 << 20:
            array.tobytes()


def check(path: Path, content: bytes) -> bool:
    """Whether the file was loaded."""
    path.write_bytes(content)
    tracemalloc.start()  # here and not around the whole test: hypothesis allocates a lot
    try:
        mr.load_weights(path, strip_prefix=True, log=lambda line: None)
        loaded = True
    except mr.WeightsError:
        loaded = False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 2 * len(content) + OVERHEAD
    if loaded:
        load_and_touch(path)
    return loaded


def fuzz(path: Path, content: bytes, examples: int) -> dict[bool, int]:
    """Check `examples` damaged versions of a file: how many were loaded, and how many refused."""
    seen = {True: 0, False: 0}
    assert check(path, content)

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    @given(changes())
    def one_file(steps):
        seen[check(path, damaged(content, steps))] += 1

    one_file()
    assert sum(seen.values()) >= examples
    return seen


def test_some_damaged_files(kind, state, make, tmp_path):
    assert fuzz(tmp_path / "x", make(kind, state), FEW)[False] > FEW / 2


@pytest.mark.nightly("5 s each: 800 files; test_some_damaged_files reads 100")
def test_damaged_files(kind, state, make, tmp_path):
    seen = fuzz(tmp_path / "x", make(kind, state), EXAMPLES)
    # Both happened: the damage was neither harmless nor total. Of 800 files 9 to 27 load. Which ones are drawn changes
    # with the modules imported so far: hypothesis takes constants from their source.
    assert min(seen.values()) >= 3, seen


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_damaged_files_of_torch_save(tmp_path, new):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    import torch

    base = torch.arange(24.0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"module.t": base.reshape(4, 6).t(), "module.o": base[3:9], "module.b": torch.ones(5).bfloat16()}
    path = tmp_path / "torch.pth"
    torch.save({"epoch": 3, "state_dict": state}, path, _use_new_zipfile_serialization=new)
    assert fuzz(tmp_path / "x", path.read_bytes(), FEW)[False] > FEW / 2


@given(st.binary(max_size=300))
@settings(max_examples=FEW, suppress_health_check=list(HealthCheck))
@example(b"PK\x05\x06" + b"\0" * 18)  # an empty zip file
def test_garbage(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage"
    for start in (b"", b"PK\x03\x04", b"\x80\x02", len(content).to_bytes(8, "little") + b"{"):
        path.write_bytes(start + content)
        with contextlib.suppress(mr.WeightsError):
            assert mr.load_weights(path) == {}
