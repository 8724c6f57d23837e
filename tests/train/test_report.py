"""results.json, the last line, the pictures, and the folder they go to."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import minires as mr
from minires import train
from minires.optim import schedules
from minires.train.checkpoint import CheckpointError
from minires.train.folder import latest_run, new_run
from minires.train.progress import Progress, format_seconds
from minires.train.report import (
    class_table,
    confusion,
    curves,
    draw_pictures,
    final_line,
    mistakes,
    per_class,
    results,
)


def trained(new, steps=7):
    parts = new()
    parts.evaluation = train.fit(
        parts.training, parts.train_batches, parts.test_batches, schedules.constant(0.1), 4,
        stop=train.Stop(max_steps=steps), log=lambda text: None,
    )  # fmt: skip
    return parts


def test_results_have_the_promised_fields(new):
    parts = trained(new)
    result = results(parts.training, {"test": parts.evaluation}, parts.dataset, mr.info())
    promised = {
        "dataset", "depth", "parameters", "epochs", "steps", "test_accuracy", "train_loss", "images_per_second",
        "device", "kernels", "peak_memory_bytes", "seed", "versions", "machine",
    }  # fmt: skip
    assert promised <= set(result)
    assert result["dataset"] == "Colours"
    assert result["parameters"] == 3 * 3 * 3 * 6 + 2 * 6 + 6 * 3 + 3
    assert (result["epochs"], result["steps"]) == (1.4, 7)
    assert result["test_accuracy"] == parts.evaluation.accuracy
    assert result["train_loss"] == np.mean(parts.training.losses[5:])
    assert 10e6 < result["peak_memory_bytes"] < 100e9
    assert json.loads(json.dumps(result)) == result
    info = mr.info()
    assert result["machine"] == {name: info[name] for name in ("processor", "cores", "threads", "platform")}
    assert result["versions"] == info["versions"]


def judged_on(labels, says, classes=3):
    """The Evaluation of a model that says so."""
    return train.Evaluation(1.0, np.array(labels), np.eye(classes, dtype=np.float32)[says])


def test_precision_and_recall_of_each_class():
    rows = per_class(judged_on([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]), ("a", "b", "c"))
    assert rows == [
        {"class": "a", "images": 4, "precision": 3 / 4, "recall": 3 / 4},
        {"class": "b", "images": 2, "precision": 1 / 2, "recall": 1 / 2},
        {"class": "c", "images": 0, "precision": None, "recall": None},  # none is, none is taken for one
    ]
    rows = per_class(judged_on([0, 1, 1, 1], [1, 1, 1, 2]), ("a", "b", "c"))
    assert [(row["precision"], row["recall"]) for row in rows] == [(None, 0.0), (2 / 3, 2 / 3), (0.0, None)]
    assert class_table(rows).splitlines() == [
        "  class  images  precision  recall",
        "  a           1          -   0.0 %",
        "  b           3     66.7 %  66.7 %",
        "  c           0      0.0 %       -",
    ]


def test_results_say_what_was_evaluated_with_which_weights(new):
    parts = trained(new)
    other = judged_on(np.arange(6) % 3, np.zeros(6, int))
    both = results(parts.training, {"val": other, "test": parts.evaluation}, parts.dataset, mr.info(), best_epoch=1)
    assert (both["val_accuracy"], both["val_images"]) == (1 / 3, 6)
    assert (both["test_accuracy"], both["test_images"]) == (parts.evaluation.accuracy, 15)
    assert (both["weights"], both["weights_epoch"]) == ("best", 1)
    assert sum(row["images"] for row in both["per_class"]) == 15  # of the test images
    assert ", with the weights of epoch 1) -> x" in final_line(both, parts.dataset, "x")
    one = results(parts.training, {"val": other}, parts.dataset, mr.info())
    assert (one["weights"], one["weights_epoch"]) == ("last", 1.4)
    assert "test_accuracy" not in one
    assert sum(row["images"] for row in one["per_class"]) == 6
    assert final_line(one, parts.dataset, "x").startswith("validation accuracy 33.33 % (Colours")


def test_the_last_line(new):
    parts = trained(new, steps=5)
    result = results(parts.training, {"test": parts.evaluation}, parts.dataset, mr.info())
    result |= {"test_accuracy": 0.9123, "depth": 101, "epochs": 15, "minutes": 12.34}
    line = final_line(result, parts.dataset, "runs/NAME")
    assert line == "test accuracy 91.23 % (Colours, ResNet-101, 15 epochs, 12.3 min) -> runs/NAME"
    result |= {"test_images": 8, "epochs": 1}
    assert "1 epoch, 12.3 min, on the first 8 test images only) -> runs/NAME" in final_line(
        result, parts.dataset, "runs/NAME"
    )


def test_pictures_are_drawn(new, tmp_path):
    pytest.importorskip("matplotlib")
    parts = trained(new)
    draw_pictures(parts.training, parts.evaluation, parts.dataset, tmp_path)
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_after_a_single_step(new, tmp_path):
    pytest.importorskip("matplotlib")
    parts = trained(new, steps=1)
    draw_pictures(parts.training, parts.evaluation, parts.dataset, tmp_path)
    assert (tmp_path / "curves.png").exists()


def test_what_the_pictures_show(new):
    pytest.importorskip("matplotlib")
    parts = trained(new)
    probabilities = np.full((15, 3), 0.1, np.float32)
    says = (parts.dataset.test_labels + (np.arange(15) < 5)) % 3  # the first five are mistakes
    probabilities[np.arange(15), says] = 0.5 + 0.03 * np.arange(15)
    evaluation = train.Evaluation(1.0, parts.dataset.test_labels, probabilities)

    figure = mistakes(evaluation, parts.dataset, "title")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 5
    worst = parts.dataset.test_labels[4]
    assert titles[0] == f"{parts.dataset.classes[(worst + 1) % 3]}, 62 %\nis: {parts.dataset.classes[worst]}"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), parts.dataset.test_images[4])

    axes = confusion(evaluation, parts.dataset.classes, "title").axes[0]
    for row in range(3):
        shares = [((says == column) & (evaluation.labels == row)).sum() for column in range(3)]
        np.testing.assert_allclose(axes.images[0].get_array()[row], 100 * np.array(shares) / sum(shares))

    left, right = curves(parts.training, "title").axes
    assert [line.get_label() for line in left.lines][1:] == ["training batches", "test set"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), parts.training.losses)
    np.testing.assert_allclose(left.lines[0].get_xdata(), np.arange(1, 8) / 5)
    np.testing.assert_allclose(right.lines[-1].get_xdata(), [1, 1.4])


def test_confusion_for_a_hundred_classes():
    pytest.importorskip("matplotlib")
    labels = np.arange(100)
    evaluation = train.Evaluation(0.0, labels, np.eye(100, dtype=np.float32))
    axes = confusion(evaluation, tuple(f"class {i}" for i in range(100)), "title").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), 100 * np.eye(100))


def test_without_matplotlib_one_line_says_so(new, tmp_path, monkeypatch):
    parts, real = trained(new, steps=1), builtins.__import__

    def fail(name, *args):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", fail)
    said = []
    draw_pictures(parts.training, parts.evaluation, parts.dataset, tmp_path, log=said.append)
    assert len(said) == 1
    assert "pip install matplotlib" in said[0]
    assert os.listdir(tmp_path) == []


def test_importing_the_package_imports_no_matplotlib():
    code = "import minires.train, sys; sys.exit('matplotlib' in sys.modules or 'cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The folder --------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run"):
        train.RunFolder(tmp_path / "file" / "run").prepare()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        train.RunFolder(tmp_path).prepare()
    tmp_path.chmod(0o700)


def test_a_disk_without_room(tmp_path):
    folder = train.RunFolder(tmp_path / "run")
    with pytest.raises(OSError, match=r"MB are free, checkpoints need 2,000,000,000,000\.0 MB"):
        folder.prepare(state_bytes=10**18)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match="No space left"):
        folder.prepare(weights_bytes=10 * free)
    folder.prepare(state_bytes=1, weights_bytes=1)
    assert os.listdir(folder.path) == []


def test_runs_are_numbered_and_the_latest_found(tmp_path):
    base = tmp_path / "resnet20"
    with pytest.raises(CheckpointError, match="nothing to resume"):
        latest_run(base)
    for time, name in enumerate(["resnet20", "resnet20-2", "resnet20-3"]):
        folder = new_run(base)
        assert folder.path.name == name
        folder.prepare()
        folder.state.write_bytes(b"")
        os.utime(folder.state, (time, time))
        assert latest_run(base).path == folder.path
    (tmp_path / "resnet20-old").mkdir()
    (tmp_path / "resnet20-old" / "state.safetensors").write_bytes(b"")
    os.utime(base / "state.safetensors", (9, 9))
    assert latest_run(base).path == base
    (tmp_path / "resnet20-4").mkdir()
    (tmp_path / "resnet20-4" / "last.safetensors").write_bytes(b"")  # weights alone are a run too
    assert new_run(base).path.name == "resnet20-5"


def test_without_a_terminal_progress_is_a_few_lines(monkeypatch):
    clock, lines = 0.0, []
    monkeypatch.setattr("minires.train.progress.time.monotonic", lambda: clock)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with Progress("epoch 2/9", total=20, done=5, log=lines.append) as progress:
        for _ in range(9):
            clock += 8.0
            progress.update(loss=2.5, accuracy=0.25, images=16)
    figures = "loss 2.500, accuracy 25.0 %, 2 images/s"
    assert lines == [
        f"epoch 2/9, batch 6/20: {figures}, 112 s left",  # the first
        f"epoch 2/9, batch 10/20: {figures}, 80 s left",  # after 30 seconds
        f"epoch 2/9, batch 14/20: {figures}, 48 s left",  # after 30 more, which is the last too: told once
    ]
    lines.clear()
    with Progress("epoch 2/9", total=20, log=lines.append, first=False) as progress:
        for _ in range(3):
            progress.update(loss=2.5, accuracy=0.25, images=16)
    assert lines == []  # a short epoch has the line of its evaluation alone


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (119, "119 s"), (130, "2 min"), (9000, "2.5 h"), (200_000, "2.3 days")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
