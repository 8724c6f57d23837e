"""The package as a whole: what importing it costs, what it says of itself, and which way imports point."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

import minires as mr

ROOT = Path(mr.__file__).parent
# The house, from the ground up: a room imports from the rooms before it only.
FLOORS = [
    "device", "files", "fetch", "pickles", "tensor", "kernels", "functional", "nn", "weights", "models", "optim",
    "data", "train", "measure", "predict", "commands",
]  # fmt: skip


def test_import_is_light():
    """Neither cupy nor matplotlib is imported."""
    code = "import sys, minires; print(sorted({'cupy', 'matplotlib', 'hypothesis', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_import_is_quick():
    """Within 0.3 s of Python's own start where nothing else runs; three times that on a busy machine is a fault."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import minires"], check=True)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 3 * 0.3


def test_info_names_versions_kernels_and_threads():
    info = mr.info()
    assert {"python", "numpy", "minires"} <= set(info["versions"])
    assert info["kernels"]["cpu"] in ("cpu", "reference")
    assert info["threads"] >= 1
    assert info["cuda"] == "available" or mr.cuda.why_not() == info["cuda"]


def test_imports_point_one_way():
    """No file imports from a higher floor (docs/README.md has the house); data stands beside the network's floors."""
    wrong = []
    for path in ROOT.rglob("*.py"):
        floor = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if floor not in FLOORS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "minires":
                parts = node.module.split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minires.")]
            wrong += [f"{path.relative_to(ROOT)} imports {n}" for n in names if n in FLOORS and higher(n, floor)]
    assert wrong == []


def higher(name: str, floor: str) -> bool:
    return FLOORS.index(name) > FLOORS.index(floor)


def test_every_module_and_public_function_has_a_docstring():
    missing = []
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert missing == []
