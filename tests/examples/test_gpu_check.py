"""examples/measure/gpu_check.py on the simulated GPU: what the report says of faults that are planted in a copy of the
checkout, so that they can be mended; and how the check divides its time.

Both plans run whole in .ci/run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minires as mr
from examples.measure import gpu_check
from examples.measure.gpu import cases, find, speed, tools
from examples.measure.gpu.pytest_cases import TestCases
from minires.cuda import blas, launch
from minires.cuda.graph import Recorder, free_memory, pools_bytes
from tests import simulator

ROOT = gpu_check.ROOT
needs_compiler = pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout without its tests, in which faults may be planted."""
    for folder in ("minires", "examples", "tests/simulator"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def plant(checkout, file, text, fault):
    path = checkout / file
    code = path.read_text()
    assert text in code, f"{file} no longer contains {text!r}: bring the fault up to date"
    path.write_text(code.replace(text, fault, 1))


def run(checkout, *arguments):
    """(exit status, what it printed, the record by stage) of the check in `checkout`."""
    out = checkout / "out"
    script = checkout / "examples" / "measure" / "gpu_check.py"
    command = [sys.executable, str(script), "--device", "cpu", "--tiny", "--out", "out"]
    done = subprocess.run([*command, *arguments], cwd=checkout, text=True, capture_output=True)
    assert not done.stderr
    (record,) = out.glob("*.jsonl")
    assert record.with_suffix(".txt").read_text() in done.stdout.replace("\r", "")
    return done.returncode, done.stdout, gpu_check.read(record)


@pytest.mark.nightly("13 s: one of the cases hangs; .ci/run has both plans without a fault")
@needs_compiler
def test_faults_of_every_kind_cost_their_own_case_only_and_can_be_mended_from_the_report(checkout):
    cuda = "minires/cuda"
    plant(checkout, f"{cuda}/elementwise.cu", "v.v[k] > 0.0f || v.v[k] != v.v[k]", "v.v[k] > 0.5f")  # wrong
    for name, fault in {
        "max_pool2d": "import time; x.dtype == 'bfloat16' or time.sleep(60)",  # a hang
        "avg_pool2d": "import os, signal; x.dtype == 'bfloat16' or os.kill(os.getpid(), signal.SIGSEGV)",  # a crash
        "global_avg_pool2d": "if x.dtype != 'bfloat16': raise ValueError('no such luck')",  # an exception
    }.items():
        head = f"def {name}(x: Array" + (
            ") -> Array:" if "global" in name else ", kernel: Two, stride: Two, padding: Two) -> Array:"
        )
        plant(checkout, f"{cuda}/pooling.py", head + "\n", f"{head}\n    {fault}\n")
    lost = "raise RuntimeError('cudaErrorIllegalAddress: an illegal memory access was encountered')"
    plant(checkout, f"{cuda}/images.py", '"""See reference.crop_and_flip."""', lost)
    plant(
        checkout, f"{cuda}/weight_gradient.cu", "right = v * dw;", "right = v * dw - 1;"
    )  # wrong, and in one of the ways only
    status, printed, records = run(checkout, "--stages", "kernels", "convolutions", "--budget", "42")
    assert status == 1
    rows = records["kernels"]["rows"]
    by_case = {row["case"]: row for row in rows}
    assert records["kernels"]["status"] == "done"

    wrong = by_case["relu"]
    assert wrong["wrong"]
    (output,) = wrong["outputs"]
    assert output["got"] == 0 < output["expected"] < 0.5
    assert f"first at {tuple(output['first_bad'])}: got 0, expected" in printed
    hang = by_case["max_pool2d"]
    assert "it hangs" in hang["text"]
    assert 'pooling.py", line' in hang["traceback"]
    crash = by_case["avg_pool2d"]
    assert "killed by SIGSEGV" in crash["text"]
    assert 'pooling.py", line' in crash["traceback"]
    exception = by_case["global_avg_pool2d"]
    assert "ValueError: no such luck" in exception["text"]
    assert 'pooling.py", line' in exception["traceback"]
    illegal = [row for row in rows if row["case"] == "crop_and_flip"]
    assert len(illegal) == 2, "once more, with every launch waited for"
    assert all("cudaErrorIllegalAddress" in row["text"] for row in illegal)
    assert "images.py" in illegal[1]["traceback"]
    faulty = {"relu", "relu bf16", "max_pool2d", "avg_pool2d", "global_avg_pool2d", "crop_and_flip"}
    assert {row["case"] for row in rows if row.get("wrong")} == faulty
    assert not by_case["normalize"].get("wrong"), "the last case was reached"
    for text in ("ValueError: no such luck", "killed by SIGSEGV", "it hangs", ">> kernels: relu"):
        assert text in printed
    assert "-- kernels: done, " in printed
    products = records["convolutions"]["rows"]
    assert len(products) == 2 * len(tools.precisions())
    for row in products:
        bad = [output["name"] for output in row["outputs"] if output["wrong"]]
        expected = ["implicit:dweight", "async:dweight"] if "tf32" in row["text"] else ["implicit:dweight"]
        assert (row["wrong"], bad) == (True, expected)


@pytest.mark.nightly("10 s: starts pytest again after each of three crashes")
@needs_compiler
def test_tests_that_fail_or_crash_have_a_row_each(checkout):
    (checkout / "tests/cuda").mkdir()
    shutil.copy(ROOT / "tests/conftest.py", checkout / "tests")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "tests/cuda/test_graph.py").write_text(
        "import os, signal\n"
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_real_one():\n    pass\n"
        "def test_real_two():\n    value = 6 * 7\n    assert value == 54, 'six by nine'\n"
        "def test_real_three():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def test_real_four():\n    raise RuntimeError('CUDA_ERROR_ILLEGAL_ADDRESS')\n"
        "def test_real_five():\n    pytest.skip('not today')\n"
        "def test_real_six():\n    pass\n"
    )
    status, printed, records = run(checkout, "--stages", "tests", "--budget", "60")
    assert status == 1
    rows = records["tests"]["rows"]
    names = [row["case"].rpartition("::")[2] for row in rows]
    assert names == ["test_real_two", "test_real_three", "test_real_four", "test_real_four", "pytest"]
    assert "AssertionError: six by nine" in rows[0]["text"]
    assert "assert value == 54" in rows[0]["traceback"]
    assert "killed by SIGSEGV" in rows[1]["text"]
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in rows[2]["text"]
    assert (rows[-1]["passed"], rows[-1]["skipped"], rows[-1]["failed"]) == (1, 1, 0)  # five and six
    assert "from test 5 of 6 on" in rows[-1]["text"]
    assert "six by nine" in printed
    assert "test_graph.py" in rows[1]["traceback"].splitlines()[3], "the last call comes first"


@needs_compiler
def test_a_pytest_that_does_not_even_begin_is_no_success(checkout):
    (checkout / "tests/cuda").mkdir()
    (checkout / "tests/cuda/test_graph.py").write_text("def test_one():\n    pass\n")
    (checkout / "tests/conftest.py").write_text("import no_such_package\n")
    status, printed, records = run(checkout, "--stages", "tests", "--budget", "30")
    assert status == 1
    assert "PYTEST ITSELF FAILED" in printed
    assert records["tests"]["rows"][-1]["wrong"]


class Late:
    """Cases whose time is up after the second test."""

    first, beyond, number, time_left = 0, 10**6, 0, 100

    def __init__(self):
        self.rows = []

    @contextmanager
    def case(self, name, limit):
        self.number += 1
        self.time_left -= 49.5
        yield True


def test_tests_stop_when_their_time_is_up(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text("import pytest\n@pytest.mark.parametrize('i', range(5))\ndef test_it(i):\n    pass\n")
    plugin = TestCases(Late())
    status = pytest.main(["-q", "-p", "no:cacheprovider", str(path)], plugins=[plugin])
    assert (plugin.late, plugin.collected, plugin.counts["passed"]) == (True, 5, 2)
    assert status == pytest.ExitCode.INTERRUPTED


@pytest.mark.nightly("lets 8 s pass")
@needs_compiler
def test_what_there_was_no_time_for_is_said_and_is_no_fault(checkout):
    plant(checkout, "examples/measure/gpu/speed.py", "def _copy(tiny: bool) -> dict[str, Any]:\n",
          "def _copy(tiny: bool) -> dict[str, Any]:\n    import time; time.sleep(60)\n")  # fmt: skip
    status, printed, records = run(checkout, "--stages", "ceilings", "--budget", "8")  # no more than a case may take
    assert status == 0
    (row,) = records["ceilings"]["rows"]
    assert row["text"] == "copy: its time was up, after 0 cases; what comes after it was not tried"
    assert "done, 8 s (its time was up in case 1, copy; what comes after it was not tried)" in printed


@needs_compiler
def test_a_stage_that_does_not_begin_says_why_and_the_others_run(checkout):
    plant(
        checkout,
        "examples/measure/gpu/find.py",
        "    bandwidth = copy_bandwidth(cases.tiny)\n",
        "    boom = no_such_thing\n",
    )
    plant(
        checkout, "examples/measure/gpu/speed.py", '    cases.run("copy"',
        "    import subprocess\n    subprocess.Popen(['sleep', '4321'])\n    cases.run(\"copy\"",
    )  # fmt: skip
    status, printed, records = run(checkout, "--stages", "kernels", "ceilings", "--budget", "60")
    assert status == 1
    assert records["kernels"]["status"] == "failed"
    assert "no_such_thing" in records["kernels"]["reason"]
    assert "boom = no_such_thing" in records["kernels"]["traceback"]
    assert "boom = no_such_thing" in printed
    assert records["ceilings"]["status"] == "done"
    assert [row["case"] for row in records["ceilings"]["rows"]][:2] == ["copy", "product fp32"]
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x004321" in _bytes(p)]
    assert not left, "what a stage has started does not outlive it"


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    if mr.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main(["--out", str(tmp_path), "--stages", "ceilings"]) == 1
    (record,) = gpu_check.read(tmp_path / "check.jsonl").values()
    assert record["status"] == "failed"
    assert mr.cuda.why_not() in record["reason"]
    assert mr.cuda.why_not() in capsys.readouterr().out


@pytest.mark.parametrize("plan", gpu_check.PLANS)
def test_stages_share_the_time_that_is_left(plan, tmp_path, monkeypatch):
    limits, clock = {}, [0.0]
    monkeypatch.setattr(gpu_check, "time", type("Clock", (), {"monotonic": staticmethod(lambda: clock[0])}))

    def run_stage(stage, path, args, limit):
        limits[stage] = limit
        clock[0] += limit / 2  # each leaves half of its time to those after it

    monkeypatch.setattr(gpu_check, "run_stage", run_stage)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    arguments = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert gpu_check.main([*arguments, "--plan", plan]) == 0
    stages, budget = gpu_check.PLANS[plan]
    assert list(limits) == list(stages)
    left = budget
    for i, stage in enumerate(stages):
        assert limits[stage] == pytest.approx(
            left * gpu_check.SHARES[stage] / sum(gpu_check.SHARES[s] for s in stages[i:])
        )
        left -= limits[stage] / 2
    gpu_check.main([*arguments, "--stages", "tests", "--budget", "240"])
    assert limits["tests"] == pytest.approx(240), "alone it may take everything"
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    gpu_check.main([*arguments, "--stages", "ceilings", "training", "--budget", "240"])
    assert limits["ceilings"] > 200, "there is nothing to train on"
    assert len(list((tmp_path / "out").iterdir())) == 4, "a record and a table for the plan, and for the stages"


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_that_is_no_time_is_an_error(budget, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["--out", str(tmp_path), "--plan", "find", "--budget", budget])
    assert stopped.value.code == 2
    assert f"argument --budget: {float(budget)} is not" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["--out", str(tmp_path / "file"), "--plan", "find"])
    assert stopped.value.code == 2
    assert "argument --out: " in capsys.readouterr().err


def test_a_process_that_does_not_stop_by_itself_is_killed(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho so far >&2\nsleep 100 &\nwait\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    start = time.monotonic()
    ended = gpu_check._run_process("kernels", {}, False, 1, {})
    assert (ended.how, ended.last_line) == ("killed after 1 s", "so far")
    assert time.monotonic() - start < 30


def test_the_table_has_sixty_lines_at_most_and_puts_torch_beside_our_steps(tmp_path):
    path = tmp_path / "check.jsonl"
    key = {"milliseconds": 2.0, "megabytes": 10}
    for stage in gpu_check.SHARES:
        for i in range(100):
            more = {"compiled": False, "milliseconds": 4.0, "megabytes": 20} if stage == "torch" else key
            gpu_check.append(path, stage=stage, case=str(i), text=f"row {i}", key=[i, 1, "tf32"], **more)
        gpu_check.append(path, stage=stage, status="done", seconds=1, reason="")
    with path.open("a") as file:
        file.write('{"stage": "kernels", "case"')  # killed while writing
    lines = gpu_check.table(gpu_check.read(path))
    assert len(lines) <= 60
    assert any("row 3; torch 4.00 ms, ratio 0.50; memory 10 / 20 MB" in line for line in lines)


def test_an_error_that_only_passed_on_the_gpus_names_that_one_and_ends_the_process(gpu, tmp_path, monkeypatch):
    """cuBLAS says "execution failed" where a kernel before it has read foreign memory."""
    import cupy

    def lost():
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def exit(status):
        raise SystemExit(status)

    def product():
        raise RuntimeError("cublasGemmStridedBatchedEx failed with status 13 (execution failed)")

    monkeypatch.setattr(cupy.cuda.runtime, "deviceSynchronize", lost)
    monkeypatch.setattr(cases.os, "_exit", exit)
    record, progress = tmp_path / "check.jsonl", tmp_path / "progress"
    stage = cases.Cases("kernels", record, progress, time.monotonic() + 60)
    with pytest.raises(SystemExit) as stopped:
        stage.run("linear", product)
    assert stopped.value.code == gpu_check.BROKEN
    (row,) = gpu_check.read(record)["kernels"]["rows"]
    assert "status 13" in row["text"]
    assert "and the GPU says: RuntimeError: cudaErrorIllegalAddress" in row["traceback"]
    assert json.loads(progress.read_text()) == [1, None], "the next process goes on after it"


def test_the_passes_of_every_kernel_are_known():
    assert {case.name for case in find.check.kernel_cases(1, 4, 4, 10)} == set(find.PASSES)


class _Step:
    """In the place of a DeviceStep."""

    active, read = staticmethod(nullcontext), staticmethod(list)


@pytest.mark.parametrize(
    ("graph", "eager", "said"),
    [
        ([2.3, 1.2], [2.3, 1.2], None),
        ([2.3, 2.3], [2.3, 2.3], "IT DOES NOT LEARN"),
        ([2.3, np.nan], [2.3, np.nan], "IT DOES NOT LEARN"),
        ([2.3, 1.2], [2.3, 1.3], "graph and eager DIFFER from step 2 on: 1.2, 1.3"),
    ],
)
def test_steps_whose_losses_are_wrong_are_no_success(gpu, monkeypatch, graph, eager, said):
    losses = {True: graph, False: eager}
    monkeypatch.setattr(
        speed,
        "step_losses",
        lambda *a, steps: (list(losses[a[4]]), _Step, None, None),  # a[4]: whether as a graph
    )
    monkeypatch.setattr(speed, "_milliseconds_of_steps", lambda *a: [1.0])
    tiny, seen = SimpleNamespace(tiny=True), {}
    rows = [speed._step(tiny, (20, 2, "tf32"), captured, "name", seen) for captured in (True, False)]
    assert rows[1]["wrong"] == (said is not None)
    assert said is None or said in rows[1]["text"]
    assert json.loads(json.dumps(rows))


def test_a_profile_has_every_launch_of_a_step(gpu):
    before = launch.Kernel.__call__, blas.Handle.gemm
    row = speed._profile(SimpleNamespace(tiny=True), (20, 2, "fp32"), "ResNet-20")
    counts = {name: count for name, (count, _) in row["launches"]}
    assert counts["batch_norm_apply"] == counts["batch_norm_partials"] == 19
    assert counts["gemm 128x27x16"] == 1, "the stem, of 2 images of 8x8"
    assert counts["sgd_update"] == counts["cross_entropy"] == 1
    milliseconds = [ms for _, (_, ms) in row["launches"]]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert f"{sum(milliseconds):.1f} ms in {sum(counts.values())} launches: " in row["text"]
    assert (launch.Kernel.__call__, blas.Handle.gemm) == before


def test_a_time_is_that_of_a_replayed_graph_or_says_that_it_is_not(any_gpu):
    import cupy

    x = cupy.zeros(8, dtype="float32")
    time = tools.timed(lambda: x.__iadd__(1), tiny=False, repeat=4, rounds=3)
    assert time.milliseconds > 0
    assert (time.recorded, time.note) == (True, "")
    # once to warm up, and (once more, and in 3 rounds) 4 times each
    assert x.tolist() == [1 + 4 * 4] * 8
    if isinstance(any_gpu, simulator.Gpu):
        assert any_gpu.launches["graph"] == 4
    y = cupy.zeros(8, dtype="float32")
    time = tools.timed(lambda: float(y.__iadd__(1)[0]), tiny=False, repeat=2, rounds=3)
    assert not time.recorded
    assert "NOT RECORDED" in time.note


def test_a_time_is_the_median_of_rounds_each_of_several_calls(gpu, monkeypatch):
    """Rounds of 4 calls: 2 ms each in the first round, 3 ms in the next, ..."""
    clock, rounds = [0.0], [0]

    class Event:
        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

    import cupy

    monkeypatch.setattr(cupy.cuda, "Event", Event)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda begin, end: end.at - begin.at)

    def replay(self):
        clock[0] += 4 * (1 + rounds[0])
        rounds[0] += 1

    monkeypatch.setattr(Recorder, "replay", replay)
    assert tools.timed(lambda: None, tiny=False, repeat=4, rounds=5).milliseconds == 4  # of 2, 3, 4, 5 and 6


def test_nothing_of_a_step_or_a_time_stays_on_the_gpu(gpu):
    """A recorder's pool is given back when it is gone: CuPy itself never would."""
    import cupy

    blas.prepare(0)
    free_memory()
    used = gpu.used_bytes
    step = find.step_losses(20, 2, "fp32", 8, True, 5)
    assert gpu.used_bytes > used + (1 << 20)
    del step
    free_memory()
    assert gpu.used_bytes == used
    kept = []
    tools.timed(lambda: kept.append(cupy.zeros(1000, dtype="float32")), tiny=True)
    free_memory()
    assert pools_bytes() > 0, "an array lies in the pool"
    assert kept.pop(0).tolist() == [0] * 1000
    kept.clear()
    free_memory()
    assert (gpu.used_bytes, pools_bytes()) == (used, 0)


def test_as_many_epochs_are_trained_as_fit():
    assert speed.epochs_that_fit(18, 30, 60) == (8, 40 / 60)  # of 98 steps, 3.4 s, and 1.5 s
    assert speed.epochs_that_fit(101, 95, 100) == (5, 80 / 60)  # 10.7 s, and 3.5 s
    assert speed.epochs_that_fit(101, 95, 10)[0] == 1


def test_random_numbers_are_random(any_gpu):
    x = tools.random((3, 5, 7))
    assert x.shape == (3, 5, 7)
    assert len(np.unique(x.get())) > 100
    large = tools.random(((1 << 22) + 10,))
    assert (large[:10].get() == large[-10:].get()).all()
