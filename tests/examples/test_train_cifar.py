"""The script as a user meets it: exit statuses, files, the last line, interruption, and every kind of bad input."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from examples import train_cifar
from minires import models
from minires.cli import arguments
from minires.train import checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "train_cifar.py"


@pytest.fixture
def command(shapes_dir):
    """The command line of a small run: 4 steps an epoch, in an empty working directory."""

    def build(*arguments):
        small = ("--data", "shapes", "--data-dir", shapes_dir,
                 "--train-size", 64, "--batch-size", 16, "--test-size", 32)  # fmt: skip
        return [sys.executable, str(SCRIPT), "--device", "cpu", *map(str, (*small, *arguments))]

    return build


@pytest.fixture
def run(command, run_here, tmp_path):
    """Run it to its end, in this process; as a finished process."""
    return lambda *arguments: run_here(command(*arguments), tmp_path)


@pytest.fixture
def start(command, tmp_path):
    """Run it to its end in a process of its own."""

    def start(*arguments, **options):
        return subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, timeout=120, **options)

    return start


def one_line(process):
    """The only line on stderr."""
    assert "Traceback" not in process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    return process.stderr


def arrays(path):
    """The arrays of a checkpoint, as bytes."""
    return {name: array.tobytes() for name, array in checkpoint.load(path)[0].items()}


def test_a_run_from_beginning_to_end(pictures, run, start, tmp_path):
    process = start("--epochs", 2, "--out", "runs/a")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    last = process.stdout.splitlines()[-1]
    facts = r"Shapes-10, ResNet-20, 2 epochs, \d\.\d min, on the first 32 test images only"
    pattern = rf"test accuracy (\d+\.\d\d) % \({facts}\) -> runs/a"
    match = re.fullmatch(pattern, last)
    assert match, last
    assert "without a GPU an epoch takes about" in process.stdout

    folder = tmp_path / "runs" / "a"
    files = {"config.json", "log.jsonl", "last.safetensors", "state.safetensors", "results.json"}
    assert set(os.listdir(folder)) == files | {"curves.png", "confusion.png", "mistakes.png"}
    results = json.loads((folder / "results.json").read_text())
    assert f"{100 * results['test_accuracy']:.2f}" == match[1]
    assert (results["parameters"], results["steps"], results["epochs"]) == (269_722, 8, 2)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    assert {"loss", "accuracy", "images_per_second", "lr", "seconds"} <= set(log[0])
    config = json.loads((folder / "config.json").read_text())
    assert (config["lr"], config["weight_decay"], config["schedule"]) == (0.2 * 16 / 128, 5e-4, "one-cycle")

    evaluated = run("--eval-only", "runs/a")
    assert evaluated.returncode == 0
    assert evaluated.stdout.splitlines()[-1].startswith(f"test accuracy {match[1]} % (Shapes-10, ResNet-20, the first ")


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        ("", ("sgd", 0.2 * 2 / 128, 0.0, False)),
        ("--depth 18 --stem imagenet", ("sgd", 0.2 * 2 / 128, 0.0, False)),
        ("--depth 50 --stem imagenet", ("adam", 1e-3, 0.0, True)),
        ("--depth 50 --stem imagenet --optimizer sgd", ("sgd", 0.05 * 2 / 128, 0.1, True)),
    ],
)
def test_each_family_has_its_recipe_and_another_can_be_chosen(tmp_path, monkeypatch, options, recipe):
    monkeypatch.chdir(tmp_path)
    args = train_cifar.read_arguments(train_cifar.make_parser(), f"{options} --batch-size 2".split())
    train_cifar.complete(args, "Shapes-10", 64)
    assert (args.optimizer, args.lr, args.label_smoothing, args.zero_init_last) == recipe


def test_steps_of_a_large_network_with_adamw(run):
    process = run(
        "--depth", 18, "--stem", "imagenet", "--steps", 2, "--batch-size", 2, "--optimizer", "adamw", "--test-size", 2
    )
    assert process.returncode == 0, process.stderr
    assert "ResNet-18, 0.0625 epochs" in process.stdout.splitlines()[-1]
    assert process.stdout.splitlines()[-1].endswith("-> runs/resnet18")


def test_initialisation_and_augmentation_can_be_chosen_and_are_kept(run, tmp_path):
    """After no step but one of almost no size, batch norm still has the weights it began with."""
    assert run("--steps", 1, "--lr", 1e-30, "--zero-init-last", "--augmentation", "none", "--out", "a").returncode == 0
    assert run("--steps", 1, "--lr", 1e-30, "--out", "b").returncode == 0
    for name, weight in (("a", 0), ("b", 1)):
        tensors, info = checkpoint.load(tmp_path / name / "last.safetensors")
        np.testing.assert_allclose(tensors["layer1.0.bn2.weight"], weight, atol=1e-6)
        assert info["settings"]["zero_init_last"] == (name == "a")
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    assert settings["augmentation"] == "none"
    assert run("--resume", "a", "--steps", 1).returncode == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["augmentation"] == "none"
    logs = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0]) for name in ("a", "b")]
    assert logs[0]["loss"] != logs[1]["loss"]


def test_what_would_be_cheaper_is_something_that_the_run_is_not(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    advice = importlib.import_module("train_cifar").speed_advice
    args = Namespace(depth=101, stem="cifar", epochs=30, max_minutes=None, steps=None, resume=None)
    rest = "--train-size 5000, --epochs 5, --max-minutes 10"
    assert advice(args, 30, 50_000, 9000.0).endswith(
        f"cheaper: --stem imagenet (1/16 the multiply-adds), --depth 20, {rest}"
    )
    args.stem = "imagenet"
    assert advice(args, 30, 50_000, 600.0).endswith(
        f"takes about 10 min, 30 of them 5.0 h; cheaper: --depth 20, {rest}"
    )
    args.epochs = 1
    assert advice(args, 1, 50_000, 600.0).endswith(
        "takes about 10 min; cheaper: --depth 20, --train-size 5000, --max-minutes 10"
    )
    args.depth, args.max_minutes = 20, 10
    assert advice(args, 1, 5000, 30.0) == "without a GPU an epoch takes about 30 s"
    args.epochs = 30
    assert "after about 6 of 30 epochs, in the middle of its learning-rate schedule" in advice(args, 30, 50_000, 100.0)
    args.resume = "runs/resnet20"  # with 7 epochs left; its depth, and what else would be cheaper, is settled
    assert advice(args, 7, 50_000, 100.0) == "without a GPU an epoch takes about 100 s, 7 of them 12 min"


def test_dry_run_needs_no_data_and_writes_nothing(run, tmp_path):
    process = run("--depth", 101, "--dry-run", "--batch-size", 64, "--data-dir", "nowhere")
    assert process.returncode == 0, process.stderr
    assert "42,512,970" in process.stdout
    assert "2,509,983,744" in process.stdout
    assert "GiB for a training step" in process.stdout
    both = [run("--dry-run", "--batch-size", 512, "--precision", precision) for precision in ("fp32", "bf16")]
    size = [re.search(r"(\S+) ([GM])iB for a training step on a GPU", each.stdout).groups() for each in both]
    fp32, bf16 = (float(number) * (1024 if unit == "G" else 1) for number, unit in size)
    assert 0.35 < bf16 / fp32 < 0.7  # half of what the layers keep, and no columns
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly("the same with another signal"))]
)
def test_interrupted_and_resumed_is_uninterrupted(run, command, interrupt, tmp_path, number):
    settings = ("--epochs", 4, "--seed", 3)
    assert run(*settings, "--out", "whole").returncode == 0
    status, _, err = interrupt(command(*settings, "--out", "parts"), tmp_path, number=number)
    assert status == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("train_cifar.py --resume parts")
    step = checkpoint.read_info(tmp_path / "parts" / "state.safetensors")["step"]
    assert 1 <= step < 16

    # The printed command, word for word: all settings come from the checkpoint.
    printed = err.splitlines()[-1].partition("continue with: ")[2].split()
    process = subprocess.run([sys.executable, *printed[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert f"resuming after step {step}\n" in process.stdout
    assert arrays(tmp_path / "parts" / "state.safetensors") == arrays(tmp_path / "whole" / "state.safetensors")
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4
    first, second = json.loads((tmp_path / "parts" / "config.json").read_text())["commands"]
    assert first.endswith(" --epochs 4 --seed 3 --out parts")
    assert second.endswith("examples/train_cifar.py --resume parts")


def test_more_epochs_for_a_finished_run(run):
    assert run("--epochs", 1, "--schedule", "constant").returncode == 0
    process = run("--resume", "--epochs", 2)
    assert process.returncode == 0, process.stderr
    assert "resuming after step 4; changed: epochs 2, was 1; changed: schedule_steps 8, was 4" in process.stdout
    assert "2 epochs" in process.stdout.splitlines()[-1]
    assert process.stdout.splitlines()[-1].endswith("-> runs/resnet20")


def test_a_run_is_never_overwritten(run, tmp_path):
    assert run("--steps", 1).returncode == 0
    before = (tmp_path / "runs" / "resnet20" / "state.safetensors").read_bytes()
    refused = run("--steps", 1, "--out", "runs/resnet20")
    assert refused.returncode == 2
    assert "holds a run already; continue it with --resume" in one_line(refused)
    numbered = run("--steps", 1)
    assert numbered.returncode == 0
    assert numbered.stdout.splitlines()[-1].endswith("-> runs/resnet20-2")
    (tmp_path / "runs" / "resnet20-2" / "state.safetensors").unlink()  # the weights alone are worth keeping too
    assert "holds a run already" in one_line(run("--steps", 1, "--out", "runs/resnet20-2"))
    (tmp_path / "runs" / "resnet20-2" / "last.safetensors").unlink()  # and so is the record of a run
    for name in ("results.json", "log.jsonl"):
        assert "holds a run already" in one_line(run("--steps", 1, "--out", "runs/resnet20-2"))
        (tmp_path / "runs" / "resnet20-2" / name).unlink()
    assert run("--steps", 1, "--out", "runs/resnet20-2").returncode == 0  # pictures and settings alone are not
    assert (tmp_path / "runs" / "resnet20" / "state.safetensors").read_bytes() == before


def test_what_was_trained_on_a_gpu_goes_on_without(run, tmp_path):
    assert run("--steps", 1, "--out", "a").returncode == 0
    for name in ("last.safetensors", "state.safetensors"):
        tensors, info = checkpoint.load(tmp_path / "a" / name)
        checkpoint.save(tmp_path / "a" / name, tensors, {**info, "settings": {**info["settings"], "precision": "tf32"}})
    evaluated = run("--eval-only", "a")
    assert evaluated.returncode == 0, evaluated.stderr
    resumed = run("--resume", "a", "--steps", 1)
    assert resumed.returncode == 0, resumed.stderr
    assert "changed: precision fp32, was tf32" in resumed.stdout
    assert "tf32 is for the CUDA kernels" in one_line(run("--eval-only", "a", "--precision", "tf32"))


# Bad input: one line, no traceback, nothing damaged ----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--depth 21", "invalid choice: 21"),
        ("--depth many", "invalid int value"),
        ("--augmentation crop", "invalid choice: 'crop'"),
        ("--batch-size 0", "'0' is not a whole number of at least 1"),
        ("--batch-size 1.5", "not a whole number"),
        ("--epochs 0", "not a whole number of at least 1"),
        ("--lr nan", "'nan' is not a number above 0"),
        ("--lr inf", "not a number above 0"),
        ("--lr -0.1", "not a number above 0"),
        ("--weight-decay -1", "not a number of at least 0"),
        ("--label-smoothing 1", "below 1"),
        ("--max-minutes 0", "not a number above 0"),
        ("--seed -1", "at least 0"),
        ("--image-size 4", "at least 8"),
        ("--train-size 99999", "Shapes-10 has 10000 training images"),
        ("--stem imagenet", "ResNet-20 has a stem of its own"),
        ("--batch-size 1 --depth 18 --stem imagenet", "batch norm needs two images"),
        ("--precision tf32", "tf32 is for the CUDA kernels, in use are the cpu kernels on cpu"),
        ("--graph", "argument --graph: is for the CUDA kernels, and the device is cpu"),
        ("--eval-only nowhere", "nowhere: there is no such file"),
        ("--resume nowhere", "nowhere: there is no such file"),
        ("--resume", "nothing to resume"),
        ("--resume a --eval-only b", "not allowed with"),
        ("--colour red", "unrecognized arguments"),
    ],
)
def test_bad_arguments(run, tmp_path, arguments, said):
    process = run(*arguments.split())
    assert process.returncode == 2
    assert said in one_line(process)
    assert not (tmp_path / "runs").exists()


def test_no_data(run, tmp_path):
    """An image folder that is none, so that no download is tried."""
    (tmp_path / "d" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "d" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"<html>")
    process = run("--data", "cifar10", "--data-dir", "d")
    assert process.returncode == 2
    assert "cifar-10-batches-py" in one_line(process)


def test_bf16_without_the_package_that_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(SystemExit) as stopped:
        arguments.use_precision(arguments.Parser(prog="train_cifar.py"), "bf16")
    assert stopped.value.code == 2
    said = "argument --precision: precision 'bf16' needs ml_dtypes; install it with: pip install ml_dtypes"
    assert capsys.readouterr().err == f"train_cifar.py: error: {said}\n"


def test_no_gpu(run):
    import minires as mr

    if mr.cuda.is_available():
        pytest.skip("there is a GPU")
    process = run("--device", "cuda")
    assert process.returncode == 2
    assert "argument --device: 'cuda' is not usable" in one_line(process)


def test_an_out_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("precious")
    process = run("--out", "file/run")
    assert process.returncode == 2
    assert "argument --out: file/run: Not a directory" in one_line(process)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_disk_that_fills_up_while_training(run, start, tmp_path):
    """Files of the second process may not grow beyond 1 MB: its checkpoint, of 2 MB, fails half-way."""
    resource = pytest.importorskip("resource")
    assert run("--epochs", 1, "--out", "a").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    process = start(
        "--resume", "a", "--epochs", 2,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )  # fmt: skip
    assert process.returncode == 1
    assert "a/state.safetensors: File too large" in one_line(process)
    after = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert after.keys() == before.keys()
    for name in ("state.safetensors", "last.safetensors", "log.jsonl", "results.json"):
        assert after[name] == before[name]


def test_a_loss_that_is_not_finite(run, tmp_path):
    process = run("--lr", "1e30", "--schedule", "constant")
    assert process.returncode == 1
    assert re.search(r"step \d+: the loss is (nan|inf|-inf); the first layer", one_line(process))
    assert not (tmp_path / "runs" / "resnet20" / "state.safetensors").exists()


def test_checkpoints_that_cannot_be_resumed(run, tmp_path):
    assert run("--epochs", 1, "--out", "a").returncode == 0
    state = tmp_path / "a" / "state.safetensors"
    good = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}

    def refused(*arguments):
        process = run("--resume", "a", *arguments)
        assert process.returncode == 2
        return one_line(process)

    assert "its depth is 20, this run's is 32" in refused("--depth", 32)
    assert "its seed is 0, this run's is 1" in refused("--seed", 1)
    assert "its number of training images is 64, this run's is 48" in refused("--train-size", 48)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == good

    tensors, info = checkpoint.load(state)
    for name, value, said in (
        ("data set", "CIFAR-10", "its data set is CIFAR-10, this run's is Shapes-10"),
        ("fingerprint of the training images", "0" * 16, "its fingerprint of the training images is 0000"),
    ):
        checkpoint.save(state, tensors, {**info, "identity": {**info["identity"], name: value}})
        assert said in refused()
    checkpoint.save(state, {**tensors, "model.fc.bias": np.zeros(9, np.float32)}, info)
    assert "fc.bias has shape (9,), expected (10,)" in refused()
    state.write_bytes(good["state.safetensors"][:-1000])
    assert "a/state.safetensors: damaged" in refused()
    state.write_bytes(b"")
    assert "a/state.safetensors: damaged" in refused()


def test_weights_of_a_plain_network(run, tmp_path):
    """They fit a residual network, and would be evaluated as that."""
    weights = models.resnet20(shortcut=False).state_dict()
    checkpoint.save(tmp_path / "x.safetensors", weights, {"settings": {"depth": 20, "plain": True}})
    process = run("--eval-only", "x.safetensors")
    assert process.returncode == 2
    assert "x.safetensors: of a plain network, without shortcuts" in one_line(process)


def test_a_damaged_state_is_said_before_any_data_is_looked_for(run, tmp_path):
    assert run("--steps", 1, "--out", "a").returncode == 0
    state = tmp_path / "a" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    process = run("--resume", "a", "--data-dir", "nowhere")
    assert process.returncode == 2
    assert "a/state.safetensors: damaged, cannot be read" in one_line(process)
    process = run("--resume", "a/last.safetensors")
    assert "a/last.safetensors: holds weights, but no training state to resume from" in one_line(process)


def test_weights_of_another_depth(run, tmp_path):
    assert run("--steps", 1, "--out", "a").returncode == 0
    process = run("--eval-only", "a", "--depth", 32)
    assert process.returncode == 2
    assert "last.safetensors: load_state_dict: the state does not fit" in one_line(process)


@pytest.mark.parametrize(
    ("dataset", "images", "epochs"),
    [
        ("CIFAR-10", 50_000, 30),
        ("CIFAR-10", 100, 30),
        ("Shapes-10", 10_000, 1),
        ("Shapes-10", 1500, 7),
        ("Shapes-10", 8, 30),
    ],
)
def test_the_drawn_pictures_are_seen_until_they_are_learnt(dataset, images, epochs):
    assert train_cifar.default_epochs(dataset, images) == epochs
