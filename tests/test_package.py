"""The package as a whole: what importing it costs, what it says of itself, and which way imports point."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import minires as mr

ROOT = Path(mr.__file__).parent
# The core in the order of its imports: a part imports from the parts before it only.
CORE = [
    "gpu", "device", "tensor", "reference", "kernels", "functional", "nn", "files", "weights", "models", "optim",
    "data", "train",
]  # fmt: skip
BACKENDS = ["cpu", "cuda"]  # import the core, and nothing imports them: they register themselves
BESIDE = ["gradcheck", "testing", "cli", "__main__"]  # import the core


def test_import_is_light():
    """Neither cupy nor matplotlib is imported."""
    code = "import sys, minires; print(sorted({'cupy', 'matplotlib', 'hypothesis', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_import_is_quick():
    """400 modules, NumPy's and Pillow's among them, take 0.2 s. A time would tell of the machine."""
    code = "import sys; before = len(sys.modules); import minires; print(len(sys.modules) - before)"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) < 450


def test_info_names_versions_kernels_and_threads():
    info = mr.info()
    assert {"python", "numpy", "minires"} <= set(info["versions"])
    assert info["kernels"]["cpu"] in ("cpu", "reference")
    assert info["threads"] >= 1
    assert info["cuda"] == "available" or mr.cuda.why_not() == info["cuda"]


def imports_of(path: Path) -> set[str]:
    """The modules of minires that a file imports, like "nn.layers"; anywhere in it, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {name.removeprefix("minires.") for name in found if name.startswith("minires.")}
    return {name for name in modules if (ROOT / name.replace(".", "/")).is_dir() or file_of(name).exists()}


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def modules() -> dict[str, Path]:
    """{"nn.layers": its path, "nn": that of nn/__init__.py, ...}, but for the package itself."""
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


def test_imports_point_one_way():
    """The core knows no backend, and no part of it a later one."""
    wrong = []
    for name, path in modules().items():
        part = name.split(".")[0]
        assert part in CORE + BACKENDS + BESIDE, f"{part} has no place in the order"
        for other in {module.split(".")[0] for module in imports_of(path)} - {part}:
            allowed = CORE[: CORE.index(part)] if part in CORE else CORE + BESIDE * (part in BESIDE)
            if other not in allowed:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_no_import_circle():
    """File by file; a package's __init__ stands for the files that it imports."""
    graph = {name: imports_of(path) & set(modules()) for name, path in modules().items()}
    for name in graph:  # from its own package a file imports other files, not what the package is made of
        graph[name] -= {name, name.rpartition(".")[0]}
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_no_part_is_more_than_a_quarter_of_the_package():
    lines = Counter()
    for name, path in modules().items():
        lines[name.split(".")[0]] += len(path.read_text().splitlines())
    part, most = lines.most_common(1)[0]
    assert most <= lines.total() / 4, f"{part} has {most} of {lines.total()} lines"


@pytest.fixture
def core_alone(tmp_path):
    """A checkout without cpu/ and cuda/."""
    shutil.copytree(ROOT, tmp_path / "minires", ignore=shutil.ignore_patterns(*BACKENDS, "__pycache__"))
    for name in BACKENDS:  # `git rm` leaves the cache
        (tmp_path / "minires" / name / "__pycache__").mkdir(parents=True)
    tests = Path(__file__).parent
    shutil.copytree(tests / "functional", tmp_path / "tests" / "functional")
    for file in (tests / "conftest.py", tests.parent / "pyproject.toml"):
        shutil.copy(file, tmp_path / file.relative_to(tests.parent))
    return tmp_path


def run_python(folder: Path, *arguments: str) -> list[str]:
    """The lines that Python prints in `folder`, with the package that is there."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_core_stands_alone(core_alone):
    """Without its backends the package trains as the reference kernels do."""
    code = """
import numpy as np, sys
import minires as mr, minires.functional as F, minires.train
from minires import data, models, optim
mr.kernels.use(sys.argv[1])
mr.manual_seed(0)
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (16, 8, 8, 3), np.uint8), rng.integers(0, 10, 16)
batches = data.Loader(images, labels, 4, mean=(0.5,) * 3, std=(0.25,) * 3, train=True)
model = models.resnet20()
optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
for (x, y), _ in zip(batches.epoch(0), range(3)):
    loss = F.cross_entropy(model(mr.Tensor(x)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(repr(loss.item()))
print(mr.kernels.in_use("cpu"), mr.cuda.is_available(), mr.info()["threads"] > 0)
"""
    alone = run_python(core_alone, "-c", code, "auto")
    assert alone[-1].split()[0] == "reference"
    assert alone[:3] == run_python(ROOT.parent, "-c", code, "reference")[:3]


@pytest.mark.nightly("20 s: runs tests/functional once more")
def test_the_core_alone_passes_the_tests_of_the_operations(core_alone):
    assert " passed" in run_python(core_alone, "-m", "pytest", "-q", "tests/functional")[-1]


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


def test_no_message_sends_people_to_a_package_that_is_not_ours():
    """minires is not on PyPI: whoever registered the name there would get those who type what a message advises."""
    advice = re.compile(r"pip install[^\n]*['\" ]minires\b")
    assert [path for path in ROOT.rglob("*.py") if advice.search(path.read_text())] == []
    assert advice.search("install it: pip install 'minires[cuda]'")


def test_an_editable_install_is_a_path_that_editors_follow(tmp_path):
    """With an import hook, as setuptools makes them, VS Code finds no `minires`."""
    code = "import sys, minires; print([f for f in sys.meta_path if 'editable' in repr(f)], minires.__file__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == f"[] {ROOT / '__init__.py'}\n"
    found = [Path(folder) / "minires" / "__init__.py" for folder in sys.path]
    assert ROOT / "__init__.py" in found


def test_the_hooks_of_a_commit_have_the_versions_of_the_extra_dev():
    pinned = r"[\w-]+(?:\[\w+\])?==[\d.]+"
    of_hooks = set(re.findall(pinned, (ROOT.parent / ".pre-commit-config.yaml").read_text()))
    assert of_hooks == set(re.findall(pinned, (ROOT.parent / "pyproject.toml").read_text()))
    assert len(of_hooks) == 2
