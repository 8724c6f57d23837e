"""The main job on a GPU, simulated where there is none: flags, graph, files, resuming."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "train_cifar.py"


@pytest.fixture
def run(any_gpu, run_here, shapes_dir, tmp_path_factory, monkeypatch):
    """Run the script in an empty folder, which is then the working directory: (exit status, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("gpu")
    monkeypatch.chdir(folder)
    small = ("--data", "shapes", "--data-dir", shapes_dir,
             "--train-size", 12, "--batch-size", 2, "--test-size", 2, "--image-size", 8)  # fmt: skip

    def run(*arguments):
        done = run_here([sys.executable, SCRIPT, "--device", "cuda", *small, *arguments], folder)
        return done.returncode, done.stdout, done.stderr

    return run


def results(path):
    return json.loads((Path(path) / "results.json").read_text())


@pytest.mark.nightly("9 s; test_on_a_gpu_before_ampere begins and continues a run, too")
def test_a_run_and_its_continuation(run):
    """tf32 and a graph are the defaults; a resumed run goes on where the first one stopped."""
    status, out, err = run("--steps", "5", "--out", "runs/a")
    assert status == 0, err
    assert "on cuda with cuda kernels in tf32" in out
    found = results("runs/a")
    assert (found["device"], found["kernels"], found["precision"], found["steps"]) == ("cuda", "cuda", "tf32", 5)
    assert found["peak_memory_bytes"] > 1 << 20
    status, out, err = run("--steps", "2", "--resume", "runs/a")
    assert status == 0, err
    assert "resuming after step 5" in out
    assert results("runs/a")["steps"] == 7


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_and_no_graph(run, precision):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    status, _, err = run("--steps", "2", "--precision", precision, "--no-graph", "--out", "runs/b")
    assert status == 0, err
    assert results("runs/b")["precision"] == precision


def test_on_a_gpu_before_ampere(run, monkeypatch):
    """fp32 is the default there; a run begun in tf32 goes on in fp32; asking for tf32 is an error of one line."""
    if not hasattr(sys.modules.get("cupy"), "_gpu"):
        pytest.skip("only the simulated GPU has a capability that can be chosen")
    gpu = sys.modules["cupy"]._gpu
    status, out, _ = run("--steps", "1", "--out", "runs/t4")
    assert "in tf32" in out
    monkeypatch.setattr(gpu, "capability", (7, 5))
    status, out, err = run("--steps", "1", "--resume", "runs/t4")
    assert status == 0, err
    assert "in fp32" in out
    assert "changed: precision fp32, was tf32" in out
    assert results("runs/t4")["machine"]["gpu"]["capability"] == "7.5"
    for arguments in (["--steps", "1"], ["--dry-run"]):
        status, _, err = run(*arguments, "--precision", "tf32")
        assert status == 2
        assert err.count("\n") == 1
        assert "argument --precision: precision 'tf32' needs a GPU of compute capability 8.0" in err


def test_the_reference_kernels_run_there_too(run):
    status, _, err = run("--steps", "1", "--kernels", "reference", "--out", "runs/c")
    assert status == 0, err
    assert (results("runs/c")["kernels"], results("runs/c")["precision"]) == ("reference", "fp32")
    status, _, err = run("--steps", "1", "--kernels", "reference", "--graph")
    assert status == 2
    assert "argument --graph: is for the CUDA kernels" in err


@pytest.mark.parametrize(
    "megabytes",
    [
        42,
        *(
            pytest.param(m, marks=pytest.mark.nightly("2 s each; another place is tried in any case"))
            for m in (44, 46, 48, 50)
        ),
    ],
)
def test_out_of_memory_is_one_line(run, monkeypatch, megabytes):
    """Wherever in the step it happens, the first recorded one included."""
    if "cupy" not in sys.modules or not hasattr(sys.modules["cupy"], "_gpu"):
        pytest.skip("only the simulated GPU's memory can be made small")
    gpu = sys.modules["cupy"]._gpu
    monkeypatch.setattr(gpu, "memory_bytes", megabytes << 20)
    status, out, err = run("--steps", "1", "--batch-size", "12", "--image-size", "32", "--depth", "20")
    assert status == 1, out
    assert "out of memory: a step of 12 images of 32x32 needs about" in err
    assert "the largest batch that fits is about" in err
    assert err.count("\n") == 1
