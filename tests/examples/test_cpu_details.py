"""examples/measure/cpu_details.py: it measures the kernels and leaves them as they were."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from examples.measure import cpu_details
from minires.cpu import convolution, matmul, plan, workers

SCRIPT = Path(cpu_details.__file__)


def test_the_clock_counts_every_second_once_and_takes_itself_out_again():
    model = mr.models.resnet20()
    optimizer = mr.optim.Adam(model.parameters())
    x, labels = mr.Tensor(cpu_details.normal(32, 32, 32, 3)), np.arange(32) % 10

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    before = workers.parallel, convolution.matmul, matmul.panels, mr.cpu.adam_update
    measured = cpu_details.profiled(step, 3)
    assert before == (workers.parallel, convolution.matmul, matmul.panels, mr.cpu.adam_update)
    groups = measured["groups"]
    used = {name for name in groups if name not in ("pooling", cpu_details.REST)}
    for i, took in enumerate(measured["timed"]):
        assert all(groups[name][i] > 0 for name in used)
        assert 0 < groups[cpu_details.REST][i] < workers.count * took
        assert sum(values[i] for values in groups.values()) <= workers.count * took * (1 + 1e-9)


def test_a_group_inside_another_counts_for_itself_only():
    clock = cpu_details.Clock()
    with clock.group("outer"), clock.group("inner"):
        cpu_details.time.sleep(0.02)
    read = clock.read()
    assert read["inner"] >= 0.02 > read["outer"]
    assert not clock.read()


def test_changed_restores_also_after_an_error():
    bound = plan.COLUMN_BYTES
    try:
        with cpu_details.changed(plan, COLUMN_BYTES=1):
            assert plan.COLUMN_BYTES == 1
            raise KeyError
    except KeyError:
        pass
    assert bound == plan.COLUMN_BYTES


@pytest.mark.parametrize(
    "sections", [("calls", "wakeup"), pytest.param(("products",), marks=pytest.mark.nightly("takes 5 s"))]
)
def test_the_program_writes_what_it_prints(tmp_path, sections):
    path = tmp_path / "details.json"
    command = [sys.executable, SCRIPT, "--only", *sections, "--seconds", "0.001", "--json", path]
    printed = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    shown = subprocess.run([sys.executable, SCRIPT, "--show", path], capture_output=True, text=True, check=True).stdout
    assert shown == printed
    record = json.loads(path.read_text())
    assert list(record["sections"]) == list(sections)
    for row in record["sections"].get("calls", ()):
        assert all(0 < microseconds < 1e6 for microseconds in row["ways"].values())
    for row in record["sections"].get("products", ()):
        assert all(0 < speed < 1e4 for speed in row["gflops"].values())


def test_memory_is_given_back_where_the_library_cannot_ask_otherwise():
    """The child of the section "memory": the package must import, and the patch must be gone afterwards."""
    code = cpu_details.GIVE_BACK + "assert ctypes.CDLL is CDLL; from minires.cpu import workers; workers.count"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_clocks_tell_how_long_something_takes():
    assert 0.01 <= cpu_details.seconds_of(lambda: time.sleep(0.005), 2) < 1
    assert 5e3 <= cpu_details.microseconds(lambda: time.sleep(0.005), 0.02) < 5e5
    assert all(value > 0 for row in cpu_details.wakeup(0) for value in row["microseconds"])


def test_winograd_rounds_more_coarsely_than_im2col():
    for row in cpu_details.rounding(0):
        for direct, winograd in zip(row["im2col"], row["winograd"]):
            assert 1e-8 < direct < winograd < 1e-4


def test_other_bounds_are_tried(monkeypatch):
    seen = set()
    monkeypatch.setattr(cpu_details, "training_step", lambda case: lambda: seen.add(plan.COLUMN_BYTES))
    cpu_details.choices(0)
    assert {1 << 20, 2 << 20, 8 << 20, plan.COLUMN_BYTES} <= seen
