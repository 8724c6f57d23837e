"""The types that an editor shows: every public function of the core says what it takes and gives."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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
