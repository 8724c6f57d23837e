"""Runs side by side: what is read, the table, mean and deviation over seeds, and the curves."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from minires.train import compare


def write_run(path, accuracies, part="test", **settings):
    """A folder as examples/train_cifar.py leaves it after len(accuracies) epochs; minutes are its epochs."""
    path.mkdir(parents=True)
    settings = {"depth": 20, "dataset": "Colours", "epochs": len(accuracies), "lr": 0.1, "seed": 0, **settings}
    records = [
        {"epoch": i + 1, f"{part}_images": 10, "step": 10 * (i + 1), "loss": 2 / (i + 1), "accuracy": accuracy - 0.1,
         "seconds": 60.0, f"{part}_loss": 1 / (i + 1), f"{part}_accuracy": accuracy}
        for i, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    (path / "config.json").write_text(json.dumps(settings))
    (path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one experiment, whose best epoch is not the last, and another experiment."""
    return [
        compare.read_run(write_run(tmp_path / "a", [0.9, 0.8])),
        compare.read_run(write_run(tmp_path / "b", [0.2, 0.7], lr=0.3)),
        compare.read_run(write_run(tmp_path / "c", [0.5, 0.82], seed=1)),
    ]


def test_the_table_shows_what_differs_and_the_last_epoch(runs):
    common, rows = compare.table(runs)
    assert common == "depth 20, dataset Colours, epochs 2, test_images 10"
    assert rows == [
        ["run", "lr", "seed", "done", "train loss", "test loss", "test accuracy", "training minutes"],
        ["a", "0.1", "0", "2", "1.0000", "0.5000", "80.00 %", "2.0"],
        ["c", "0.1", "1", "2", "1.0000", "0.5000", "82.00 %", "2.0"],
        ["mean ± std of 2", "", "", "", "", "", f"81.00 ± {100 * statistics.stdev([0.8, 0.82]):.2f} %", ""],
        ["b", "0.3", "0", "2", "1.0000", "0.5000", "70.00 %", "2.0"],
    ]
    assert compare.as_markdown(rows).splitlines()[1] == "|" + "---|" * 8
    assert compare.as_markdown(rows).count("\n") == 5
    text = compare.as_text(rows).splitlines()
    assert {line.index(cell) for line, cell in zip(text, ["lr", "0.1", "0.1"])} == {len("mean ± std of 2") + 2}


def test_runs_with_a_validation_part(tmp_path, runs):
    with_val = compare.read_run(write_run(tmp_path / "v", [0.5, 0.6], part="val"))
    assert (with_val.part, with_val.accuracy) == ("val", 0.6)
    common, rows = compare.table([with_val])
    assert "val_images 10" in common
    assert rows[0][-3:] == ["validation loss", "validation accuracy", "training minutes"]
    assert rows[1][-3:] == ["0.5000", "60.00 %", "2.0"]
    (tmp_path / "v" / "results.json").write_text(json.dumps({"epochs": 2, "test_accuracy": 0.55}))
    _, rows = compare.table([compare.read_run(tmp_path / "v")])
    assert rows[0][-3:] == ["validation accuracy", "test accuracy", "training minutes"]
    assert rows[1][-3:] == ["60.00 %", "55.00 %", "2.0"]
    _, rows = compare.table([with_val, runs[0]])  # no column says one thing and holds another
    assert rows[0][-2] == "validation or test accuracy"
    pytest.importorskip("matplotlib")
    labels = [text.get_text() for text in compare.overlay([with_val, runs[0]]).legends[0].get_texts()]
    assert labels[-1] == "validation or test set"


def test_settings_of_zero_and_false_are_told_apart_from_missing_ones(tmp_path):
    paths = [
        write_run(tmp_path / "a", [0.5], weight_decay=0.0, plain=False),
        write_run(tmp_path / "b", [0.5], weight_decay=1e-4, plain=True),
        write_run(tmp_path / "c", [0.5]),
    ]
    _, rows = compare.table([compare.read_run(path) for path in paths])
    assert [row[1:3] for row in rows] == [["weight_decay", "plain"], ["0.0", "no"], ["0.0001", "yes"], ["-", "-"]]


def test_a_run_that_has_not_ended(tmp_path):
    going, ended = write_run(tmp_path / "a", [0.5], epochs=3), write_run(tmp_path / "b", [0.5])
    (ended / "results.json").write_text(json.dumps({"device": "cuda", "epochs": 1}))
    runs = [compare.read_run(going), compare.read_run(ended)]
    assert [run.settings.get("device") for run in runs] == [None, "cuda"]
    assert [row[-5] for row in compare.table(runs)[1]] == ["done", "1 of 3", "1"]


def test_a_run_that_has_ended_and_goes_on(tmp_path):
    """`--resume --epochs 3` of a run of one epoch: until it ends again, results.json is that of the first end."""
    path = write_run(tmp_path / "a", [0.5, 0.6], epochs=3)
    (path / "results.json").write_text(json.dumps({"device": "cuda", "epochs": 1, "test_accuracy": 0.5}))
    run = compare.read_run(path)
    assert (run.results, run.accuracy) == ({}, 0.6)
    assert "device" not in run.settings


def test_a_fingerprint_that_older_runs_do_not_have_makes_no_other_experiment(tmp_path):
    paths = write_run(tmp_path / "a", [0.5]), write_run(tmp_path / "b", [0.7], seed=1, fingerprint="56bd")
    _, rows = compare.table([compare.read_run(path) for path in paths])
    assert rows[-1][0] == "mean ± std of 2"


@pytest.mark.parametrize("changed", [{"seed": 0}, {"epochs": 2}, {"flip": True}, {"lr": [1, 2]}, {"schedule_steps": 9}])
def test_what_is_no_repetition_has_no_mean(tmp_path, changed):
    """The same seed again, a run cut short, another setting of any name, another way down of the rate (--steps)."""
    paths = write_run(tmp_path / "a", [0.5]), write_run(tmp_path / "b", [0.7], **{"seed": 1, **changed})
    _, rows = compare.table([compare.read_run(path) for path in paths])
    assert len(rows) == 3


def test_the_curves(runs):
    pytest.importorskip("matplotlib")
    left, right = compare.overlay(runs, "title").axes
    assert len(left.lines) == len(right.lines) == 6  # training and test of three runs
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2, 1])
    np.testing.assert_allclose(left.lines[1].get_ydata(), [1, 0.5])
    np.testing.assert_allclose(right.lines[1].get_ydata(), [10, 20])
    assert left.lines[0].get_color() == right.lines[1].get_color() != right.lines[2].get_color()


@pytest.mark.parametrize("count", [3, 10, 11, 25])
def test_every_run_has_a_colour_of_its_own(tmp_path, count):
    pytest.importorskip("matplotlib")
    many = [compare.read_run(write_run(tmp_path / str(i), [0.5])) for i in range(count)]
    lines = compare.overlay(many).axes[0].lines
    assert len({line.get_color() for line in lines}) == count


def test_names_that_are_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    same = [compare.read_run(write_run(tmp_path / parent / "x", [0.5])) for parent in ("a", "b")]
    texts = [text.get_text() for text in compare.overlay(same).legends[0].get_texts()]
    assert texts == [str(tmp_path / "a" / "x"), str(tmp_path / "b" / "x"), "training", "test set"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "config.json: not a file of a run"),
        ("config.json", "{", "config.json: not a file of a run"),
        ("config.json", "[]", "config.json: not a file of a run"),
        ("config.json", "{}", "config.json: not the settings of a run .depth is None"),
        ("config.json", '{"depth": 20, "epochs": "many"}', "not the settings of a run .epochs is 'many'"),
        ("config.json", "\xff", "config.json: not a file of a run"),
        ("results.json", "?", "results.json: not a file of a run"),
        ("log.jsonl", None, "log.jsonl: not the log of a run"),
        ("log.jsonl", "", "log.jsonl: no epoch has ended yet"),
        ("log.jsonl", '{"epoch": 1}\n', "log.jsonl: not the log of a run"),
        ("log.jsonl", "[1]\n", "log.jsonl: not the log of a run"),
        (
            "log.jsonl",
            '{"epoch": 1, "loss": "1", "accuracy": 1, "test_loss": 1, "test_accuracy": 1, "seconds": 1}',
            "loss is not a number",
        ),
    ],
)
def test_damaged_folders(tmp_path, name, content, said):
    path = write_run(tmp_path / "a", [0.5])
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content, encoding="latin-1")
    with pytest.raises(compare.RunError, match=said):
        compare.read_run(path)
