"""The Python blocks of the chapters run as they are printed, but for a line that would download."""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from pathlib import Path

import pytest

import minires as mr
from minires import models, train
from minires.train import compare

DOCS = Path(__file__).parents[1] / "docs"


def blocks_of(chapter: str) -> list[str]:
    found = re.findall(r"^ *```python\n(.*?)```", (DOCS / chapter).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


@pytest.mark.parametrize("chapter", ["engine.md", "layers.md", "training.md"])
def test_what_a_line_prints_is_what_the_comment_behind_it_says(chapter, capsys):
    namespace: dict = {}
    blocks = blocks_of(chapter)
    for block in blocks:
        exec(compile(block, chapter, "exec"), namespace)
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", "\n".join(blocks), flags=re.MULTILINE)
    assert len(expected) >= 8
    assert capsys.readouterr().out.splitlines() == expected


def test_the_chapter_on_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mr.save_weights(models.resnet50(), "resnet50-0676ba61.pth")
    wrapped = {f"module.{name}": array for name, array in models.resnet20().state_dict().items()}
    mr.save_weights(wrapped, "checkpoint.pth")
    Path("checkpoint.pth").rename("checkpoint.th")
    blocks = blocks_of("weights.md")
    assert len(blocks) == 2
    namespace: dict = {}
    for block in blocks:
        lines = [line for line in block.splitlines() if 'weights="imagenet"' not in line]
        exec(compile("\n".join(lines), "weights.md", "exec"), namespace)
    assert namespace["state"].keys() == models.resnet20().state_dict().keys()
    assert mr.load_weights("mine.pth").keys() == mr.load_weights("mine.safetensors").keys()


def test_the_step_in_the_chapter_on_training_is_the_one_that_runs():
    (step,) = re.findall(r"```python notest\n(.*?)```", (DOCS / "training.md").read_text(), flags=re.DOTALL)
    lines = [line.strip() for line in Path(train.loop.__file__).read_text().splitlines()]
    assert [line for line in lines if line in step.splitlines()] == step.splitlines()


def test_what_the_chapter_on_training_says_of_runs_is_in_their_logs():
    text = " ".join((DOCS / "training.md").read_text().split())
    results = DOCS / "results"
    runs = [compare.read_run(results / "trained" / f"resnet20-seed{seed}").records for seed in range(3)]
    after_17, at_the_end = (
        "{:.0f}, {:.0f} and {:.0f} %".format(*(100 * run[i]["test_accuracy"] for run in runs)) for i in (16, -1)
    )
    assert f"After 17 of 24 epochs the three seeds have {after_17} of the test images right" in text
    assert f"In the last 7 the rate falls from {runs[0][16]['lr']:.3f} to zero, and they come to {at_the_end}." in text
    short = compare.read_run(results / "ablation" / "baseline")
    assert (
        f"A run of {len(short.records)} epochs whose rate has come down to zero ends at {100 * short.accuracy:.0f} %"
        in text
    )
    assert short.accuracy > max(run[16]["test_accuracy"] for run in runs)


def test_what_the_chapter_on_training_says_of_pytorch_and_of_the_recipe_is_in_the_results():
    text = " ".join((DOCS / "training.md").read_text().split())
    sgd, adam = (
        json.loads((DOCS / "results" / "pytorch" / f"resnet101-{name}" / "losses.json").read_text())["losses"]
        for name in ("sgd", "adam")
    )
    libraries = ("minires", "PyTorch", "PyTorch, nudged")
    same = [
        [abs(a - b) <= 1e-4 for a, b in zip(sgd[name], sgd["PyTorch"])].index(False)
        for name in (libraries[0], libraries[2])
    ]
    assert same == [5, 6]
    assert "the same losses for five steps" in text
    assert "as PyTorch parts from itself after six" in text
    peaks = [max(sgd[name]) for name in libraries]
    assert [sgd[name].index(peak) + 1 for name, peak in zip(libraries, peaks)] == [30, 30, 30]
    assert "All climb, to {:.1f} here and to {:.1f} and {:.1f} there at step 30".format(*peaks) in text
    ends = [f"{statistics.fmean(losses[name][-10:]):.2f}" for losses in (sgd, adam) for name in libraries]
    assert "and end at {}, {} and {} (mean of the last ten of 100 steps)".format(*ends[:3]) in text
    assert len(sgd["minires"]) == 100
    assert "By Adam all fall, to {}, {} and {}.".format(*ends[3:]) in text

    rows = {path.name: compare.read_run(path) for path in (DOCS / "results" / "ablation").iterdir() if path.is_dir()}
    seeds = [rows[name].accuracy for name in ("baseline", "baseline-seed1", "baseline-seed2")]
    assert f"Three seeds of the baseline are {100 * (max(seeds) - min(seeds)):.1f} points apart" in text
    cost = {name: 100 * (statistics.fmean(seeds) - run.accuracy) for name, run in rows.items()}
    assert max(abs(cost[name]) for name in ("smoothing", "batch-64", "no-augmentation")) < 0.4
    assert f"A constant rate of 0.05 costs {cost['constant']:.0f} points." in text
    assert f"{cost['adam-one-cycle']:.0f}" == f"{cost['constant']:.0f}"
    assert f"without it {cost['adam']:.0f};" in text
    assert f"Blocks that begin as their shortcuts cost {cost['zero-init-last']:.0f}" in text
    assert f"Flips without crops gain {-cost['flips-only']:.1f} points." in text
    losses = [
        (f"{rows[name].records[-1]['loss']:.2f}", f"{rows[name].records[-1]['test_loss']:.2f}")
        for name in ("baseline", "flips-only", "no-augmentation")
    ]
    assert (
        "are the same, {} and {}. With flips alone they are {} and {}, and with neither {} and {},".format(
            *(loss for pair in losses for loss in pair)
        )
        in text
    )

    def trained(name):
        return compare.read_run(DOCS / "results" / "trained" / name)

    flips, crops = trained("resnet20-flips"), [trained(f"resnet20-seed{seed}") for seed in range(3)]
    losses = [f"{run.records[-1][name]:.2f}" for run in (flips, crops[0]) for name in ("loss", "test_loss")]
    accuracies = sorted(f"{100 * run.accuracy:.2f}" for run in crops)
    assert "flips alone end at {} and {}, with {:.2f} %".format(*losses[:2], 100 * flips.accuracy) in text
    last = "it is {} and {}, and three seeds have {} to {} %."
    assert last.format(*losses[2:], accuracies[0], accuracies[-1]) in text
    small, large = (
        [f"{100 * trained(name).accuracy:.2f} %" for name in names]
        for names in (("resnet18-16px-no-zero-init", "resnet18-16px-sgd"), ("resnet18-no-zero-init", "resnet18"))
    )
    assert "16x16 images ({} without them, {} with)".format(*small) in text
    assert "it is {} without and {} with them".format(*large) in text


def test_what_the_pages_say_of_deeper_small_networks_is_in_the_results():
    readme, chapter = (
        " ".join(path.read_text().split()) for path in (DOCS.parent / "README.md", DOCS / "residual-learning.md")
    )
    trained = DOCS / "results" / "trained"
    middle, deep = (compare.read_run(trained / name) for name in ("resnet32", "resnet56"))
    seeds = compare.mean_and_std([compare.read_run(trained / f"resnet20-seed{seed}") for seed in range(3)])
    accuracy = compare.percent([middle.accuracy])
    assert (middle.settings["epochs"], deep.settings["epochs"]) == (24, 12)
    assert (
        f"24 epochs of ResNet-20 give {seeds} on CIFAR-10 (JPEG) (3 seeds)<!-- end -->, and of ResNet-32 {accuracy}"
        in readme
    )
    assert f"it has {accuracy} of the test images right (one seed), against {seeds} (three)" in chapter
    assert f"ResNet-56 comes to {compare.percent([deep.accuracy])} in half as many" in chapter


def test_what_the_readme_says_of_resnet101_is_in_the_results():
    text = " ".join((DOCS.parent / "README.md").read_text().split())
    short, long, wide = (
        compare.read_run(DOCS / "results" / "trained" / f"resnet101-{name}")
        for name in ("one-epoch", "imagenet-stem-18", "cifar-stem")
    )
    assert f"one epoch then gets {100 * short.accuracy:.2f} %" in text
    assert f"and {long.settings['epochs']} get {100 * long.accuracy:.2f} %, after two and a half hours on two" in text
    assert 19 < short.results["minutes"] < 21
    assert 145 < long.results["minutes"] < 155
    assert (
        f"one epoch gets {100 * wide.accuracy:.2f} %, after {wide.results['minutes']:.0f} minutes on two cores" in text
    )
    assert [run.results["machine"]["threads"] for run in (short, long, wide)] == [1, 2, 2]
    macs = [mr.summary(models.build(101, 10, stem), (32, 32, 3)).macs for stem in ("cifar", "imagenet")]
    seconds = [wide.records[0]["seconds"], statistics.median(record["seconds"] for record in long.records)]  # an epoch
    assert 8.5 < seconds[0] / seconds[1] < 9.5
    assert f"which is {macs[0] / macs[1]:.0f} times the work and takes nine times as long" in text
