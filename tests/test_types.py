"""The types that an editor shows: declared everywhere, right for a user's code, offered while one types."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minires as mr

ROOT = Path(mr.__file__).parent
CORE = [*ROOT.glob("*.py"), *(path for part in ("functional", "nn", "optim", "models", "data", "train")
                              for path in (ROOT / part).glob("*.py"))]  # fmt: skip


def public(body: list[ast.stmt], place: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(place, function) for the functions in `body` and the methods of its classes; __init__ and its like too."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{place}.{node.name}")
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.endswith("__")):
            yield f"{place}.{node.name}", node


def bare(function: ast.FunctionDef) -> list[str]:
    """The parameters without a type, and "return"."""
    of = function.args
    arguments = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
    names = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    return names + ["return"] * (function.returns is None and function.name != "__init__")


def test_every_public_function_is_annotated():
    functions = [found for path in CORE for found in public(ast.parse(path.read_text()).body, path.stem)]
    assert len(functions) > 300
    assert {place: bare(function) for place, function in functions if bare(function)} == {}


USERS = """\
import numpy as np
from typing_extensions import assert_type

import minires as mr
import minires.functional as F
from minires import Tensor, models, nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


x, net = Tensor([1.0, 2.0]), Net().to("cpu").eval()
assert_type(net, Net)
assert_type(1 - x / 2 + np.float32(3), Tensor)
assert_type(x @ x > 0, Tensor)
assert_type(x == 1, Tensor)
assert_type(x[None, :, 0].sum(axis=0).relu().T, Tensor)
assert_type(F.relu(F.add(x, 1)).reshape([2, 1]), Tensor)
assert_type(models.build(20).train(), models.ResNet | models.CifarResNet)
assert_type(mr.fold(models.resnet18()).fc, nn.Linear)
x += 1
assert_type(x, Tensor)
print(net.body[0].weight, net(x).anything, x.numpy().tolist())
x.nonsense  # wrong
net.nonsense  # wrong
x.sum(axes=0)  # wrong
"""


@pytest.mark.nightly("starts pyright")
def test_what_a_checker_says_of_a_users_code(tmp_path):
    """No more and no less is an error than the lines that say so."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install -e '.[dev]'")
    (tmp_path / "users.py").write_text(USERS)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "users.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])["generalDiagnostics"]
    errors = {entry["range"]["start"]["line"] for entry in found if entry["severity"] == "error"}
    assert errors == {i for i, line in enumerate(USERS.splitlines()) if line.endswith("# wrong")}, found


@pytest.mark.parametrize(
    ("made_by", "wanted"),
    [
        ("mr.Tensor([1.0])", {"reshape", "sum", "relu", "mean", "T", "exp", "clip", "backward", "grad", "shape"}),
        ("mr.Tensor([1.0]).relu().sum()", {"backward", "item"}),
        ("mr.models.build(20).train()", {"fc", "features", "layer1", "eval", "state_dict"}),
    ],
)
def test_what_an_editor_offers_behind_the_dot(made_by, wanted):
    jedi = pytest.importorskip("jedi")
    lines = ["import minires as mr", f"value = {made_by}", "value."]
    assert wanted <= {name.name for name in jedi.Script("\n".join(lines)).complete(3, 6)}
