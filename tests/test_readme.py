"""The README's Python blocks run as they are printed, and its tests pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_are_blocks():
    assert len(BLOCKS) >= 2
    assert sum("def test_" in block for block in BLOCKS) == 1


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(block, "README.md", "exec"), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test_"):
            value()
