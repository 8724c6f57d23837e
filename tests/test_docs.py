"""The Python blocks of the chapters run as they are printed, but for a line that would download."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minires as mr
from minires import models

DOCS = Path(__file__).parents[1] / "docs"


def blocks_of(chapter: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / chapter).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("chapter", ["engine.md", "layers.md"])
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
