"""The one command for a machine with a GPU: run whole on the simulated one, and with stages that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minires.kernels.cuda import check, simulator
from minires.measure import stages


@pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
def test_the_whole_command_runs_on_the_simulated_gpu(tmp_path, capsys):
    status = check.main(["--out", str(tmp_path), "--budget", "240", "--device", "cpu", "--tiny"])
    text = capsys.readouterr().out
    assert status == 0, text
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(records) == {*check.STAGES, "training"}
    for stage in ("ceilings", "tests", "kernels", "convolutions", "steps"):
        assert records[stage]["status"] == "done", records[stage]
        assert records[stage]["rows"]
    assert records["torch"]["status"] in ("done", "skipped")
    assert records["training"]["status"] == "skipped"
    assert "simulated GPU" in text
    assert len((tmp_path / "table.txt").read_text().splitlines()) <= 60
    assert "WRONG" not in text
    steps = records["steps"]["rows"]
    assert [row["graph"] for row in steps] == [True, False]
    assert all(row["milliseconds"] > row["floor_milliseconds"] > 0 for row in steps)


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(out=tmp_path, device="cpu", tiny=True, data_dir="data")


def test_a_stage_that_fails_or_hangs_is_noted(args, monkeypatch):
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    path = args.out / "kernels.json"
    monkeypatch.setattr(check.subprocess, "run", hang)
    check.run_stage("kernels", args, 5)
    assert check.read(path)["reason"] == "stopped after 5 s"

    def crash(command, **options):
        check.write(path, {"stage": "kernels", "status": "running", "rows": [{"text": "one row"}]})
        return SimpleNamespace(returncode=1, stderr="Traceback\nValueError: broken\n")

    monkeypatch.setattr(check.subprocess, "run", crash)
    check.run_stage("kernels", args, 5)
    record = check.read(path)
    assert (record["status"], record["reason"]) == ("failed", "ValueError: broken")
    assert record["rows"] == [{"text": "one row"}]  # what it had found stays
    check.run_stage("kernels", args, 0.5)
    assert check.read(path)["reason"] == "no time was left"


def test_one_failing_stage_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    seen = []

    def run(command, **options):
        seen.append(command[3])
        return SimpleNamespace(returncode=1, stderr="boom")

    monkeypatch.setattr(check.subprocess, "run", run)
    assert check.main(["--out", str(tmp_path), "--device", "cpu", "--tiny"]) == 1
    assert seen == [*check.STAGES, "training"]
    assert capsys.readouterr().out.count("failed") == 7


def test_a_wrong_result_is_a_failure(tmp_path, monkeypatch, capsys):
    def run(command, **options):
        path = tmp_path / f"{command[3]}.json"
        check.write(path, {"stage": command[3], "status": "done", "rows": [{"text": "relu", "wrong": True}]})
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(check.subprocess, "run", run)
    assert check.main(["--out", str(tmp_path), "--stages", "kernels"]) == 1
    assert "WRONG relu" in capsys.readouterr().out


def test_the_table_has_sixty_lines_at_most_and_puts_torch_beside_our_steps():
    rows = [{"text": f"row {i}", "case": [i, 1, "tf32"], "milliseconds": 2.0, "megabytes": 10} for i in range(100)]
    torch = [{"text": "torch", "case": [3, 1, "tf32"], "milliseconds": 4.0, "megabytes": 20}]
    records = [{"stage": s, "status": "done", "rows": rows} for s in check.STAGES if s != "torch"]
    records.append({"stage": "torch", "status": "done", "rows": torch})
    lines = check.table(records)
    assert len(lines[: check.LINES]) <= 60
    assert any("row 3; torch 4.00 ms, ratio 0.50; memory 10 / 20 MB" in line for line in lines)


def test_without_a_gpu_it_says_so(tmp_path):
    from minires.device import cuda

    if cuda.is_available():
        pytest.skip("there is a GPU")
    assert check.main(["--out", str(tmp_path), "--stages", "ceilings"]) == 1
    assert check.read(tmp_path / "ceilings.json")["reason"].startswith(("CuPy", "no NVIDIA"))


def test_a_time_is_the_median_of_calls_after_the_first(monkeypatch):
    """Rounds of 4 calls: 1000 ms for the first call of all, then 2 ms each in the first round, 3 ms in the next, ..."""
    clock, calls = 0.0, -1

    class Event:
        def record(self):
            self.at = clock

        def synchronize(self):
            pass

    def function():
        nonlocal clock, calls
        clock += 1000 if calls < 0 else 2 + calls // 4
        calls += 1

    events = SimpleNamespace(Event=Event, get_elapsed_time=lambda begin, end: end.at - begin.at)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=events))
    assert stages.milliseconds(function, tiny=False, repeat=4, rounds=5) == 4
    assert calls == 20


def test_a_wrong_result_is_seen():
    ones = np.ones(4, np.float32)
    assert stages.difference(ones, ones) == 0
    assert stages.difference((ones, 2 * ones), (ones, ones)) == pytest.approx(1)
    assert stages.difference(0 * ones, ones) == pytest.approx(1)
