"""The Python blocks of the chapters run as they are printed, but for a line that would download."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from pathlib import Path

import pytest

import minires as mr
from minires import models, nn, train
from tests.pictures import make_folder

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
    assert len(blocks) == 3
    namespace: dict = {}
    for block in blocks:
        lines = [line for line in block.splitlines() if 'weights="imagenet"' not in line]
        exec(compile("\n".join(lines), "weights.md", "exec"), namespace)
    assert namespace["state"].keys() == models.resnet20().state_dict().keys()
    assert "image_size" in mr.weights.read_metadata("shapes.safetensors")["minires"]
    assert mr.load_weights("mine.pth").keys() == mr.load_weights("mine.safetensors").keys()


def test_the_chapter_on_own_pictures(tmp_path, monkeypatch):
    """Its commands are run by .ci/run; its block of Python, on fewer pictures, here."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", {"circle": 10, "cross": 10, "star": 10})
    (block,) = blocks_of("own-pictures.md")
    exec(compile(block, "own-pictures.md", "exec"), {})
    commands = re.findall(r"```bash\n(.*?)```", (DOCS / "own-pictures.md").read_text(), flags=re.DOTALL)
    words = [shlex.split(line) for block in commands for line in block.splitlines()]
    assert {words[0] + " " + words[1] for words in words} == {
        "python examples/draw_pictures.py", "minires train", "minires predict", "minires finetune"
    }  # fmt: skip


def test_the_step_in_the_chapter_on_training_is_the_one_that_runs():
    (step,) = re.findall(r"```python notest\n(.*?)```", (DOCS / "training.md").read_text(), flags=re.DOTALL)
    lines = [line.strip() for line in Path(train.loop.__file__).read_text().splitlines()]
    assert [line for line in lines if line in step.splitlines()] == step.splitlines()


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_comment_tears_a_paragraph_apart(page):
    """At the start of a line a comment ends the paragraph before it: only those around tables and code stand there."""
    text = page.read_text()
    for match in re.finditer(r"^<!-- ([\w-]+) -->(.*)$", text, flags=re.MULTILINE):
        assert match[1] == "end" or not match[2], f"{page.name}: {match[0]}"
    assert len(re.findall(r"<!-- (?!end)[\w-]+ -->", text)) == text.count("<!-- end -->")


@pytest.mark.parametrize("page", ["../README.md", "own-pictures.md", "residual-learning.md", "training.md"])
def test_no_measured_accuracy_is_typed_by_hand(page):
    """A share with two decimals is a result: write_numbers.py writes it, between comments."""
    by_hand = re.sub(r"<!-- [\w-]+ -->.*?<!-- end -->", "", (DOCS / page).read_text(), flags=re.DOTALL)
    assert not re.findall(r"\d\.\d\d %", by_hand)


def test_the_chapter_on_residual_learning_shows_the_code_that_runs():
    code = re.findall(r"```python notest\n(.*?)```", (DOCS / "residual-learning.md").read_text(), flags=re.DOTALL)
    lines = [line.strip() for block in code for line in block.splitlines() if line != "..."]
    source = [inspect.getsource(part) for part in (nn.branch, models.resnet.Block.forward)]
    assert lines
    assert all(line in "".join(source) for line in lines)
