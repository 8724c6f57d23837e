"""The Python blocks of the chapters run as they are printed, but for a line that would download."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

import minires as mr
from minires import models, train

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
    for line in step.splitlines():
        assert line in lines


def test_what_the_chapter_on_training_says_of_a_run_is_in_its_log():
    text = " ".join((DOCS / "training.md").read_text().split())
    log = (DOCS / "results" / "trained" / "resnet20-seed0" / "log.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in log]
    test, training = ([100 * epoch[name] for epoch in epochs] for name in ("test_accuracy", "accuracy"))
    assert f"After 3 epochs {test[2]:.0f} % of the test images are right. After 17 it is {test[16]:.0f} %" in text
    assert f"anything between {min(test[2:17]):.0f} % and {max(test[2:17]):.0f} % on the way" in text
    assert 0.5 < epochs[16]["loss"] / epochs[2]["loss"] < 0.6  # "almost halved"
    assert f"In the last 7, in which the rate falls from {epochs[16]['lr']:.3f} to zero" in text
    assert f"it becomes {test[23]:.0f} %" in text
    assert abs((training[23] - training[16]) - (training[16] - training[5])) < 0.5  # "as much as in the 11 before"
