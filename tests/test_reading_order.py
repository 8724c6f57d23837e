"""The thread through the house: every file says where it stands, and the next one that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minires"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py" and "simulator" not in path.parts)


def order_of(path: Path) -> str:
    """What the docstring says after "Reading order"."""
    return " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").partition("Reading order")[2].split())


def next_of(path: Path) -> list[Path]:
    """The files that it names as the next, each looked for beside it, in minires/, and at the top."""
    named = re.search(r"Next: ([\w./-]+\w(?:(?: and |, and )[\w./-]+\w)*)", order_of(path))
    found = []
    for name in re.split(r",? and ", named[1]) if named else []:
        places = [folder / name for folder in (path.parent, PACKAGE, ROOT) if (folder / name).exists()]
        assert places, f"{path.relative_to(ROOT)}: next is {name}, which does not exist"
        found.append(places[0].resolve())
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_its_place(path):
    assert order_of(path)
    next_of(path)
    before = re.search(r"after ([\w/]+\.py)", order_of(path))
    assert not before or any((folder / before[1]).exists() for folder in (path.parent, PACKAGE))


def test_no_module_is_lost():
    """Another names it as the next, or its package in a list, or it says itself when to read it."""
    named = {file for path in MODULES for file in next_of(path)}
    for path in MODULES:
        if path.name != "__init__.py" and path not in named:
            listed = path.stem in re.findall(r"\w+", order_of(path.parent / "__init__.py"))
            assert listed or re.search(r"any time|when |first |after functional/", order_of(path)), path


def test_the_thread_from_the_images_to_the_weight_update():
    path, thread = PACKAGE / "__init__.py", []
    while path.is_relative_to(PACKAGE):
        thread.append(str(path.relative_to(PACKAGE)))
        (path,) = next_of(path)
        assert str(path) not in thread
        assert len(thread) < 100
    assert path == ROOT / "examples" / "train_cifar.py"
    rooms = ["data/loader.py", "device.py", "tensor.py", "functional/arithmetic.py", "functional/convolution.py",
             "kernels/reference.py", "functional/normalization.py", "nn/module.py", "nn/branch.py", "models/resnet.py",
             "optim/optimizer.py", "train/loop.py"]  # fmt: skip
    assert [file for file in thread if file in rooms] == rooms


@pytest.mark.parametrize(
    ("first", "last", "rooms"),
    [
        ("kernels/cpu/workers.py", "kernels/cpu/optimizers.py", "kernels/cpu"),
        ("weights/mapped.py", "commands.py", "weights"),
    ],
)
def test_the_threads_beside_it(first, last, rooms):
    path, thread = PACKAGE / first, [PACKAGE / first]
    while following := next_of(path):
        (path,) = following
        assert path not in thread
        thread.append(path)
    assert path == PACKAGE / last
    assert {file for file in MODULES if file.parent == PACKAGE / rooms and file.name != "__init__.py"} <= set(thread)
