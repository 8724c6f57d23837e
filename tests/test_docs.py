"""The Python blocks of docs/weights.md run as they are printed, but for the line that would download."""

from __future__ import annotations

import re
from pathlib import Path

import minires as mr
from minires import models

CHAPTER = Path(__file__).parents[1] / "docs" / "weights.md"


def test_the_chapter_on_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mr.save_weights(models.resnet50(), "resnet50-0676ba61.pth")
    wrapped = {f"module.{name}": array for name, array in models.resnet20().state_dict().items()}
    mr.save_weights(wrapped, "checkpoint.pth")
    Path("checkpoint.pth").rename("checkpoint.th")
    blocks = re.findall(r"```python\n(.*?)```", CHAPTER.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    namespace: dict = {}
    for block in blocks:
        lines = [line for line in block.splitlines() if 'weights="imagenet"' not in line]
        exec(compile("\n".join(lines), "weights.md", "exec"), namespace)
    assert namespace["state"].keys() == models.resnet20().state_dict().keys()
    assert mr.load_weights("mine.pth").keys() == mr.load_weights("mine.safetensors").keys()
