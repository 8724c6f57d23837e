"""`minires check` on the simulated GPU, with faults planted and without; on a real one too."""

from __future__ import annotations

import importlib
import json
import re

import numpy as np
import pytest

from minires import cuda, kernels, reference
from minires.cli.commands import main
from minires.cuda import convolution, launch, precision
from tests import simulator

check = importlib.import_module("minires.cuda.check")  # `cuda.check` is the function


ONE_SHAPE = {**check.TINY, "kernels": check.TINY["kernels"][:1]}


def run(only="", sizes=ONE_SHAPE):
    """(names of what is wrong, lines) of the part of the check whose tasks' names begin so."""
    lines, tasks = [], check.tasks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "tasks", lambda sizes: (task for task in tasks(sizes) if task[0].startswith(only)))
        return cuda.check(lines.append, sizes), lines


def plant(monkeypatch, file, text, fault):
    """A fault in a kernel, for the rest of the test."""
    original = launch.source
    assert text in original(file)
    monkeypatch.setattr(launch, "source", lambda file, defines=(): original(file, defines).replace(text, fault))
    launch.program.cache_clear()


@pytest.mark.nightly("20 s, most of them g++; the faults below try the same tasks")
def test_all_is_right_and_every_kernel_has_run(any_gpu):
    any_gpu.reset()
    wrong, lines = run(sizes=check.TINY)
    assert not wrong, "\n".join(lines)
    names = [line[7:].split("  ")[0] for line in lines if line.startswith("ok ")]
    assert len(names) == len(set(names)) > 90
    known = [choice for choice in precision.CHOICES if not precision.why_not(choice)]
    for choice in known:
        assert f"convolution 3x3, {choice}" in names
        assert f"training steps of ResNet-20, {choice}" in names
    assert re.fullmatch(rf"{len(names)} of {len(names)} are right, after \d+ s", lines[-1])
    if isinstance(any_gpu, simulator.Gpu):
        declared = {kernel for path in launch.FOLDER.glob("*.cu") for kernel in launch.parse(launch.source(path.stem))}
        assert declared <= set(any_gpu.launches)


def test_every_function_with_a_kernel_is_tried():
    own = {name for name, value in vars(cuda).items() if getattr(value, "__module__", "").startswith("minires.cuda.")}
    elsewhere = {"conv2d", "conv2d_backward", "linear", "linear_backward"}  # in product_cases
    within = {"prepare_lr", "branch", "evaluate_branch"}  # of the updates, of the steps
    assert own & set(vars(reference)) - elsewhere - within <= {case.name for case in check.kernel_cases(1, 4, 4, 10)}


@pytest.mark.parametrize(
    ("file", "text", "fault", "only", "wrong"),
    [
        ("elementwise", "v.v[k] > 0.0f || v.v[k] != v.v[k]", "v.v[k] > 0.5f", "relu,", ["relu, fp32", "relu, bf16"]),
        ("batch_norm", "v * unbiased", "v", "batch_norm_stat",
         ["batch_norm_statistics, fp32", "batch_norm_statistics, bf16"]),
        ("convolution", "? v + 0x1000u : v", "? v & 0xff800000u : v", "convolution 3x3 without columns, 16",
         ["convolution 3x3 without columns, 16 outputs, tf32"]),
        # Graph and eager agree on a wrong update too.
        ("optimizers", "float v = momentum * velocity[i] + g;", "float v = momentum * velocity[i] + 0.5f * g;",
         "training steps of ResNet-20, fp32", ["training steps of ResNet-20, fp32"]),
        ("optimizers", "p *= 1.0f - lr * weight_decay", "p *= 1.0f", "adam_update", ["adam_update decoupled, fp32"]),
        ("optimizers", "stopped[0] = 1.0f", "stopped[0] = 0.0f", "sgd_update",
         ["sgd_update after a loss that is not finite, fp32"]),
        ("batch_norm", "float b = count ?", "float b = true ?", "batch_norm_backward in",
         ["batch_norm_backward in evaluation, fp32", "batch_norm_backward in evaluation, bf16"]),
    ],
    ids=["a value", "running statistics", "rounding to tf32", "an update", "AdamW", "no stop", "evaluation"],
)  # fmt: skip
def test_a_planted_fault_is_named(gpu, monkeypatch, file, text, fault, only, wrong):
    pytest.importorskip("ml_dtypes")
    plant(monkeypatch, file, text, fault)
    found, lines = run(only)
    assert found == wrong
    assert all(f"WRONG  {name}" in "\n".join(lines) for name in wrong)


@pytest.mark.nightly("2 s; test_device_step.py compares graphs with eager steps")
def test_a_graph_that_differs_is_wrong(gpu, monkeypatch):
    original = check._device_steps

    def steps(x, labels, count, graph):
        losses, flat = original(x, labels, count, graph)
        return losses, flat + graph

    monkeypatch.setattr(check, "_device_steps", steps)
    wrong, lines = run("training steps of ResNet-20, fp32")
    assert wrong == ["training steps of ResNet-20, fp32"]
    assert "as a CUDA graph DIFFERENT" in lines[2]


def test_exceptions_are_wrong_results_and_a_lost_context_ends_the_check(gpu, monkeypatch):
    def failing(text):
        def function(*arguments):
            raise RuntimeError(text)

        return function

    monkeypatch.setattr(cuda, "avg_pool2d", failing("no such\n luck"))
    monkeypatch.setattr(cuda, "max_pool2d_backward", failing("cudaErrorIllegalAddress: an illegal memory access"))
    wrong, lines = run("avg_pool2d, fp32")
    assert wrong == ["avg_pool2d, fp32"]
    assert lines[2].endswith("RuntimeError: no such luck")
    wrong, lines = run("max_pool2d")
    assert wrong == ["max_pool2d_backward, fp32"]
    assert lines[-2].startswith("after this error nothing works on this GPU")


def test_a_gpu_that_cannot_do_a_precision_is_checked_in_the_others():
    if simulator.why_not():
        pytest.skip(str(simulator.why_not()))
    with simulator.gpu(capability=(7, 5)):
        wrong, lines = run("linear")
    assert not wrong
    for line, choice in zip(lines[2:4], ("tf32", "bf16")):
        assert line.startswith(f"not checked: precision '{choice}' needs a GPU of compute capability 8.0 or newer")
    assert lines[-1].startswith("1 of 1 are right")


# The command


@pytest.fixture
def tiny(monkeypatch):
    """The check of the command in the sizes for a trial."""
    backend_check, tasks = cuda.check, check.tasks
    monkeypatch.setattr(check, "tasks", lambda sizes: (task for task in tasks(sizes) if task[0].startswith("relu")))
    monkeypatch.setattr(cuda, "check", lambda: backend_check(sizes=ONE_SHAPE))


def test_the_command(gpu, tiny, capsys, monkeypatch):
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "compute capability 9.0" in lines[0]
    assert lines[-1] == "the CUDA kernels are right on this GPU"
    plant(monkeypatch, "elementwise", "output.v[k] > 0.0f ? gradient.v[k] : 0.0f", "gradient.v[k]")
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"WRONG  relu_backward, fp32 +dx: error .* first at \(\d+, \d+, \d+, \d+\): got", "\n".join(lines))
    assert lines[-1].startswith(
        "the CUDA kernels are WRONG on this GPU: relu_backward, fp32; relu_backward, bf16. Please"
    )
    assert "`minires info`" in lines[-1]


def test_no_memory_says_nothing_of_the_kernels(gpu, tiny, capsys, monkeypatch):
    def relu(x):
        raise MemoryError("the GPU has no 8 bytes left")

    monkeypatch.setattr(cuda, "relu", relu)
    assert main(["check"]) == 2
    output = capsys.readouterr()
    assert output.err == "minires check: error: out of memory (the GPU has no 8 bytes left)\n"
    assert "WRONG" not in output.out


def test_without_a_gpu_the_command_says_why(monkeypatch, capsys):
    monkeypatch.setattr(cuda.device.cuda, "why_not", lambda: "CuPy is installed, but no NVIDIA driver is")
    with pytest.raises(SystemExit) as exit:
        main(["check"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == (
        "minires check: there is no GPU to check: CuPy is installed, but no NVIDIA driver is; minires runs on the CPU\n"
    )


def test_the_reference_is_not_compared_with_itself(gpu, capsys):
    kernels.use("reference")
    try:
        with pytest.raises(SystemExit) as exit:
            main(["check"])
    finally:
        kernels.use("auto")
    assert exit.value.code == 2
    assert "the kernels in use are the reference's" in capsys.readouterr().err


# Its tools


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("cudaErrorIllegalAddress: an illegal memory access was encountered", True),
        ("CUDA_ERROR_MISALIGNED_ADDRESS: misaligned address", True),
        ("cudaErrorLaunchFailure: unspecified launch failure", True),
        ("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure", True),
        ("cudaErrorMemoryAllocation: out of memory", False),
        ("cudaErrorStreamCaptureUnsupported", False),
    ],
)
def test_which_errors_break_the_context(text, lost):
    assert check.breaks_the_context(text) == lost


def test_one_wrong_element_of_many_is_seen():
    """A pixel that was not written hardly shows in a norm."""
    expected = np.random.default_rng(0).standard_normal((100, 100))
    got = expected.astype(np.float32)
    got[99, 99] += 0.5
    (row,) = check.differences(got, expected, "y", 1e-2)
    assert row["error"] < 1e-2
    assert (row["wrong"], row["first_bad"]) == (True, (99, 99))


def test_what_is_wrong_with_an_output_is_said():
    expected = np.arange(1.0, 13).reshape(3, 4)
    got = expected.astype(np.float32)
    (row,) = check.differences(got, expected, "y", 1e-5)
    assert not row["wrong"]
    got[1, 2], got[2, 0] = 70, np.nan
    (row,) = check.differences(got, expected, "y", 1e-5)
    assert (row["wrong"], row["nans"], row["bad"], row["first_bad"]) == (True, 1, 2, (1, 2))
    assert check.described([row]).endswith("2 of 12 bad, 1 NaN, first at (1, 2): got 70, expected 7")
    rows = check.differences((expected, expected[:2]), (expected, expected), "y dx", 1e-5)
    assert check.described(rows) == "dx has shape (2, 4), expected (3, 4)"
    assert check.differences(0 * expected, expected, "y", 1e-5)[0]["error"] == pytest.approx(1)
    json.dumps(rows)


def test_what_is_computed_in_is_put_back_one_inside_the_other():
    """It was not once, and both columns of the table of convolutions were one algorithm."""

    def now():
        return precision.current, convolution.algorithm

    before = now()
    with check.computing("tf32", "implicit"):
        with check.computing("fp32", "columns"):
            assert now() == ("fp32", "columns")
        assert now() == ("tf32", "implicit")
    assert now() == before
