"""Every name and keyword of the array library used in minires exists in CuPy too; checked without a GPU.

The source is searched for what is asked of an array module (`xp.maximum`, `module_of(x).empty`) and of arrays
(`x.sum(axis=..., keepdims=...)`), and the installed CuPy is asked whether it has that. The CPU backend is left
out: it is written for NumPy alone.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import minires

pytestmark = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
PACKAGE = Path(minires.__file__).parent
CPU = PACKAGE / "cpu"


class Use(NamedTuple):
    """`name` ("xp.add.at", "ndarray.sum") used with `keywords` at `where`."""

    name: str
    keywords: tuple[str, ...]
    where: str


def is_module_of(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "module_of"


def uses(source: str, file: str) -> list[Use]:
    """What `source` asks of array modules and arrays; a file that imports neither `Array` nor `module_of` has none."""
    tree = ast.parse(source)
    modules, imported = {"xp", "cupy"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_module_of(node.value):
            modules |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    takes_arrays = bool({"Array", "module_of"} & imported)
    keywords = {
        node.func: tuple(k.arg for k in node.keywords if k.arg) for node in ast.walk(tree) if isinstance(node, ast.Call)
    }
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}  # xp.add in xp.add.at
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        names, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            names.insert(0, root.attr)
            root = root.value
        where, given = f"{file}:{node.lineno}", keywords.get(node, ())
        if is_module_of(root) or (isinstance(root, ast.Name) and root.id in modules):
            if node not in inner:
                found.append(Use(".".join(["xp", *names]), given, where))
        elif (
            takes_arrays and hasattr(np.ndarray, node.attr) and not (isinstance(root, ast.Name) and root.id in imported)
        ):
            # a keyword that NumPy has not (list.sort's key) shows that this is no array
            known = accepted(getattr(np.ndarray, node.attr)) | accepted(getattr(np, node.attr, None))
            found.append(Use(f"ndarray.{node.attr}", tuple(k for k in given if k in known), where))
    return found


def accepted(function: Any) -> set[str]:
    """The keywords that `function` takes; "**" among them if it takes any. Compiled ones have them in the docstring."""
    try:
        parameters = inspect.signature(function).parameters.values()
        return {"**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters}
    except (TypeError, ValueError):
        signature = re.search(r"\w+\((.*?)\)(?: ->|\n|$)", function.__doc__ or "")
        return set(re.findall(r"(\w+)(?==|,|$| )", signature[1])) if signature else set()


def problem(use: Use, cupy: Any) -> str | None:
    """What CuPy lacks of `use`, in words; None if nothing."""
    thing: Any = cupy
    for name in use.name.removeprefix("xp.").split("."):
        if not hasattr(thing, name):
            return f"{use.where}: cupy has no {use.name.removeprefix('xp.')}"
        thing = getattr(thing, name)
    known = accepted(thing)
    missing = [] if "**" in known else [k for k in use.keywords if k not in known]
    return f"{use.where}: cupy's {use.name} has no keyword {', '.join(missing)}" if missing else None


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if CPU not in path.parents]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_cupy_has_what_is_used(path):
    import cupy

    found = (problem(use, cupy) for use in uses(path.read_text(), path.name))
    assert [text for text in found if text] == []


def test_the_search_finds_the_names():
    reference = uses((PACKAGE / "reference.py").read_text(), "reference.py")
    names = {use.name for use in reference}
    assert {"xp.empty", "xp.exp", "xp.pad", "xp.maximum", "ndarray.sum", "ndarray.reshape", "ndarray.max"} <= names
    assert any(use.name == "xp.zeros" and use.keywords == ("dtype",) for use in reference)
    assert any(use.name == "ndarray.max" and use.keywords == ("axis", "keepdims") for use in reference)
    shape = uses((PACKAGE / "functional" / "shape.py").read_text(), "shape.py")
    assert "xp.add.at" in {use.name for use in shape}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("xp = module_of(a)\nxp.no_such_thing(a)", ["f:2: cupy has no no_such_thing"]),
        ("xp.sum(a, where=b)", ["f:1: cupy's xp.sum has no keyword where"]),
        ("module_of(a).strings.upper(a)", ["f:1: cupy has no strings.upper"]),
        ("lib = module_of(a)\nlib.nested_iters(a)", ["f:2: cupy has no nested_iters"]),
        ("from minires.device import Array\na.sum(axis=0, where=b)", ["f:2: cupy's ndarray.sum has no keyword where"]),
        ("from minires.device import Array\na.setflags(write=False)", ["f:2: cupy has no ndarray.setflags"]),
        ("import cupy\ncupy.cuda.no_such_thing()", ["f:2: cupy has no cuda.no_such_thing"]),
        ("xp.exp(a, subok=True)", ["f:1: cupy's xp.exp has no keyword subok"]),
        (
            "from minires.device import Array\nxp.maximum(a, b, out=c)\nxp.add.at(a, i, b)\n"
            "a.max(axis=0, keepdims=True).astype('f', copy=False)",
            [],
        ),
        ("from minires.device import Array\nimport numpy as np\nnp.busday_count(a)\nnames.sort(key=len)", []),
        ("from PIL import Image\nimage.resize((2, 2))", []),
    ],
)
def test_the_search_would_find_what_cupy_lacks(source, expected):
    import cupy

    assert [text for use in uses(source, "f") if (text := problem(use, cupy))] == expected


def test_cupy_imports_without_a_gpu():
    """No CUDA device may be needed for the checks here, nor for minires' probe to give a reason."""
    code = "import cupy; print(cupy.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
