"""The command `minires`: output, exit status, and every kind of bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minires as mr
from minires import models
from minires.cli import predict
from minires.cli.commands import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images, and the weights of a network with ten classes."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(5):
        (path / "images").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path / "images" / f"{i}.png")
    model = models.resnet20(generator=np.random.default_rng(1))
    model.fc.weight.data *= 10  # different probabilities
    mr.save_weights(model, path / "x.safetensors")
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """(exit status, stdout, stderr) of `minires predict --weights x.safetensors ...` in that folder."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main(["predict", "--weights", "x.safetensors", "--device", "cpu", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_text(run):
    status, out, err = run("images/0.png")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "images/0.png"
    assert len(lines) == 6
    percent = [float(line.split()[0]) for line in lines[1:]]
    assert percent == sorted(percent, reverse=True)
    assert all(line.split(" %  ")[1] in predict.CIFAR10_CLASSES for line in lines[1:])
    assert "taken for those of CIFAR-10" in err


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_folder_as_json(run, batch_size):
    status, out, _ = run("images", "--format", "json", "--top", 10, "--batch-size", batch_size)
    rows = json.loads(out)
    assert status == 0
    assert [row["file"] for row in rows] == [f"images/{i}.png" for i in range(5)]
    for row in rows:
        assert sum(p["probability"] for p in row["predictions"]) == pytest.approx(1, abs=1e-5)
        assert sorted(p["index"] for p in row["predictions"]) == list(range(10))
        assert row["predictions"][0]["probability"] == max(p["probability"] for p in row["predictions"])


def test_csv_to_a_file_says_the_same_as_json(run, tmp_path):
    assert run("images", "--format", "csv", "--top", 3, "--output", tmp_path / "x.csv")[:2] == (0, "")
    table = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    rows = json.loads(run("images", "--format", "json", "--top", 3)[1])
    flat = [(row["file"], rank, p) for row in rows for rank, p in enumerate(row["predictions"], start=1)]
    assert [(r["file"], int(r["rank"]), r["class"], int(r["index"])) for r in table] == [
        (file, rank, p["class"], p["index"]) for file, rank, p in flat
    ]
    assert [float(r["probability"]) for r in table] == pytest.approx([p["probability"] for *_, p in flat], abs=1e-5)


def test_what_is_no_image_is_named_and_skipped_with_status_1(run, tmp_path, folder):
    (tmp_path / "notes.txt").write_text("hello")
    status, out, err = run(tmp_path, "images/1.png", tmp_path / "nowhere.png")
    assert status == 1
    assert out.splitlines()[0] == "images/1.png"
    assert f"skipped: {tmp_path / 'notes.txt'}: cannot be read (not an image)" in err
    assert "nowhere.png: cannot be read (No such file or directory)" in err
    assert "2 of 3 files skipped" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_a_name_that_is_no_unicode(folder, tmp_path, form):
    name = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copy(folder / "images" / "0.png", name)
    command = [sys.executable, "-m", "minires", "predict", "--weights", folder / "x.safetensors", name]
    command += ["--format", form]
    shown = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert shown.returncode == 0, shown.stderr
    assert subprocess.run([*command, "--output", tmp_path / "out"], capture_output=True).returncode == 0
    for content in (shown.stdout, (tmp_path / "out").read_bytes()):
        assert (name in content) if form != "json" else (os.fsencode(json.loads(content)[0]["file"]) == name)


def test_names_from_a_file(run, tmp_path):
    (tmp_path / "names").write_text("\n".join(f"thing {i}" for i in range(10)))
    status, out, err = run("images/0.png", "--classes", tmp_path / "names")
    assert status == 0
    assert err.splitlines() == [
        "x.safetensors: says nothing of its normalisation, taken for that of CIFAR-10",
        "x.safetensors: says nothing of the size of its images, taken for 32x32",
    ]
    assert "thing" in out.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("predict --weights nowhere images", "error: nowhere: there is no such file of weights"),
        ("predict --weights images images", "last.safetensors: there is no such file of weights"),
        ("predict --weights images/0.png images", "images/0.png: not a readable file of weights"),
        ("predict --weights x.safetensors empty", "argument IMAGE: there are no files in empty"),
        ("predict --weights x.safetensors images --classes images/0.png", "images/0.png is not a text in UTF-8"),
        ("predict --weights x.safetensors images --top 0", "'0' is not a whole number of at least 1"),
        ("predict --weights x.safetensors images --output nowhere/x.csv", "nowhere/x.csv"),
        ("predict images", "the following arguments are required: --weights"),
        ("summary --depth 19", "invalid choice: 19"),
        ("summary --depth 20 --stem imagenet", "ResNet-20 has a stem of its own"),
        ("paint", "invalid choice: 'paint'"),
    ],
)
def test_bad_arguments(folder, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    try:
        status = main(arguments.split())
    except SystemExit as error:
        status = error.code
    err = capsys.readouterr().err
    assert status == 2
    assert said in err
    assert err.strip().splitlines()[-1].startswith("minires")
    assert "Traceback" not in err


def test_imagenet_without_a_network_says_where_to_put_the_file(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert main(["predict", "--weights", "imagenet", "--depth", "101", "images"]) == 2
    assert f"put it at {tmp_path}/resnet101-63fe2227.pth" in capsys.readouterr().err


def test_summary(capsys):
    assert main(["summary", "--depth", "101"]) == 0
    assert "input 224x224x3: 44,549,160 parameters, 7.801 GMACs" in capsys.readouterr().out
    assert main(["summary", "--depth", "20"]) == 0
    assert "input 32x32x3: 269,722 parameters" in capsys.readouterr().out
    assert main(["summary", "--depth", "18", "--stem", "cifar", "--num-classes", "100", "--image-size", "16"]) == 0
    assert "input 16x16x3: 11,220,132 parameters" in capsys.readouterr().out


def test_stages(capsys):
    assert main(["summary", "--depth", "101", "--stages"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[5].split()[:7] == ["conv4_x", "bottleneck", "block", "(1x1,", "3x3,", "1x1)", "14x14x1024"]
    assert lines[-1] == "1 + 3x3 + 4x3 + 23x3 + 3x3 + 1 = 101 layers with weights, 44,549,160 parameters"
    assert main(["summary", "--depth", "20", "--stages", "--image-size", "64"]) == 0
    assert "16x16x64" in capsys.readouterr().out


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in ("predict", "report", "summary", "info", "--version"))
    with pytest.raises(SystemExit) as exit_status:
        main(["--version"])
    assert exit_status.value.code == 0
    assert capsys.readouterr().out == f"minires {mr.__version__}\n"


@pytest.mark.parametrize("command", ["predict", "summary"])
def test_one_default_of_depth_and_it_is_printed(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "(default: 101)" in " ".join(capsys.readouterr().out.split())


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"numpy {np.__version__}" in out
    assert "kernels" in out
    assert "threads" in out


def test_the_module_and_the_script_are_the_same_command(folder):
    arguments = ["predict", "--weights", "x.safetensors", "images/2.png", "--device", "cpu"]
    outputs = []
    script = Path(sys.executable).with_name("minires")
    for command in ([sys.executable, "-m", "minires"], [str(script)]):
        if command == [str(script)] and not script.exists():
            pytest.skip("minires is not installed with its script")
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


# report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    """Two folders of runs, in tmp_path."""
    for name, lr in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(
            json.dumps({"depth": 20, "epochs": 1, "dataset": "Colours", "lr": lr})
        )
        record = {"epoch": 1, "loss": 1, "accuracy": 0.5, "test_loss": 1, "test_accuracy": 0.25 + lr, "seconds": 6}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(record))
    return tmp_path


def test_report(runs, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(runs)
    assert main(["report", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "all runs: depth 20, epochs 1, dataset Colours",
        "",
        "run  lr   done  train loss  test loss  test accuracy  training minutes",
        "a    0.1  1     1.0000      1.0000     35.00 %        0.1",
        "b    0.2  1     1.0000      1.0000     45.00 %        0.1",
        "",
        "-> report.png",
    ]
    assert (runs / "report.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", "a", "b", "--format", "markdown", "--out", "x.svg"]) == 0
    assert "| b | 0.2 | 1 | 1.0000 | 1.0000 | 45.00 % | 0.1 |" in capsys.readouterr().out
    assert "<svg" in (runs / "x.svg").read_text()


def test_report_leaves_out_what_is_no_run(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["report", "nowhere", "a"]) == 0
    out, err = capsys.readouterr()
    assert "35.00 %" in out
    assert err.startswith("left out: nowhere/config.json: not a file of a run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere/config.json: not a file of a run (No such file or directory)"),
        (["a", "--out", "nowhere/x.png"], "argument --out: nowhere/x.png: No such file or directory"),
        (["a", "--out", "x.abc"], "'abc' is not supported"),
        (["a", "--out", "x"], "argument --out: 'x' has no ending"),
    ],
)
def test_report_of_nothing(runs, monkeypatch, capsys, arguments, said):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(runs)
    try:
        status = main(["report", *arguments])
    except SystemExit as error:
        status = error.code
    assert status == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
