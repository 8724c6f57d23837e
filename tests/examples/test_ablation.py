"""examples/experiments/ablation.py: a row is a command of train_cifar.py, trained once; a table shows the results."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples import train_cifar
from examples.experiments import ablation
from minires.train import compare

SCRIPT = Path(ablation.__file__)


@pytest.fixture(scope="module")
def folder(shapes_dir, without_matplotlib, tmp_path_factory):
    """A folder with Shapes-10 in data/, in which two rows have been trained."""
    path = tmp_path_factory.mktemp("ablation")
    shutil.copytree(shapes_dir, path / "data")
    assert run(path, "--rows", "baseline", "batch-64", PYTHONPATH=without_matplotlib).returncode == 0
    return path


def run(path, *arguments, **environment):
    """A small experiment: 1 epoch, of 64 images."""
    small = "--data shapes --data-dir data --train-size 64 --test-size 32 --epochs 1 --device cpu --out out"
    command = [sys.executable, str(SCRIPT), *small.split(), *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=300, env=environment)


def test_a_row_changes_one_thing(folder):
    settings = [compare.read_run(folder / "out" / row).settings for row in ("baseline", "batch-64")]
    changed = {name for name in settings[0] if settings[0][name] != settings[1][name]}
    assert changed == {"batch_size", "lr", "commands"}  # the rate goes with the batch
    commands = [compare.read_run(folder / "out" / row).settings["commands"][0] for row in ("baseline", "batch-64")]
    assert [" ".join(command.split()[2:6]) for command in commands] == [
        "--depth 20 --data shapes",
        "--depth 20 --batch-size 64",
    ]


def test_a_finished_row_is_not_trained_again(folder):
    before = {path: path.read_bytes() for path in (folder / "out").glob("*/*")}
    again = run(folder, "--rows", "baseline", "batch-64")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 2
    assert {path: path.read_bytes() for path in before} == before


def test_an_interrupted_row_is_resumed(folder):
    (folder / "out" / "batch-64" / "results.json").unlink()
    again = run(folder, "--rows", "batch-64")
    assert again.returncode == 0, again.stderr
    assert "train_cifar.py --resume out/batch-64" in again.stdout
    assert len(json.loads((folder / "out" / "batch-64" / "config.json").read_text())["commands"]) == 2


def test_the_table(pictures, folder):
    runs = [compare.read_run(folder / "out" / row) for row in ("baseline", "batch-64")]
    accuracy = [100 * run.accuracy for run in runs]
    header, first, second = ablation.table(runs)
    assert (first[1], second[1]) == ("", "batch_size 64, lr 0.1")
    assert [first[0], *first[-2:]] == ["baseline", f"{accuracy[0]:.2f} %", "-"]
    assert second[-1] == f"{accuracy[1] - accuracy[0]:+.2f}"
    assert len(header) == len(first) == len(second)
    drawn = run(folder, "--draw", "out")
    assert drawn.returncode == 0, drawn.stderr
    assert f"{accuracy[1]:.2f} %" in drawn.stdout
    assert (folder / "out" / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_of_another_budget_is_refused(folder):
    refused = run(folder, "--rows", "baseline", "--epochs", 2)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "out/baseline: its epochs is 1, not 2" in refused.stderr


@pytest.fixture
def config(folder):
    """That of the baseline; what a test does to it is undone."""
    path = folder / "out" / "baseline" / "config.json"
    before = path.read_text()
    yield path
    path.write_text(before)


def test_a_row_on_other_images_is_refused_before_any_is_trained(folder, config):
    """As when "auto" came to Shapes-10 yesterday, without a network, and comes to CIFAR-10 today."""
    config.write_text(config.read_text().replace('"Shapes-10"', '"CIFAR-10"'))
    refused = run(folder)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "out/baseline: its dataset is CIFAR-10, not Shapes-10" in refused.stderr


def test_what_was_asked_for_by_another_name_is_the_same_data(folder, config):
    config.write_text(config.read_text().replace('"data": "shapes"', '"data": "auto"'))
    again = run(folder, "--rows", "baseline")
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that can be caught")
def test_sigterm_is_passed_on_to_the_training(folder):
    """It writes its checkpoint, and nothing goes on training behind the back of whoever stopped the experiment."""
    small = "--data shapes --data-dir data --rows baseline --epochs 50 --device cpu --out stopped"
    command = [sys.executable, "-u", str(SCRIPT), *small.split()]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "batch 1/" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "a checkpoint was written; continue with" in err
    assert (folder / "stopped" / "baseline" / "state.safetensors").exists()


def test_a_row_that_fails_ends_the_experiment(folder):
    failed = run(folder, "--rows", "adam", "cosine", "--train-size", 99999)
    assert failed.returncode == 2
    assert "cosine" not in failed.stdout
    assert not (folder / "out" / "adam").exists()


def test_every_row_is_a_command_that_train_cifar_takes():
    known = train_cifar.make_parser()
    for options in ablation.ROWS.values():
        known.parse_args(shlex.split(options))  # exits, if it does not


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--rows nothing", "invalid choice: 'nothing'"), ("--draw nowhere", "holds no finished row")],
)
def test_bad_arguments(folder, arguments, said):
    refused = run(folder, *arguments.split())
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert said in refused.stderr
