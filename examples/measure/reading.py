"""Counts the lines that a reader of minires reads: the path of one training step, the reading order, the package.

    python examples/measure/reading.py

Three tables. The first follows one training step through the package with `sys.settrace`: the files and functions that
the step enters, their length, and the number of their lines that run. The second counts the reading order, from
minires/__init__.py to the training loop. The third counts the parts of the package, which docs/contributing.md
describes.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import minires as mr
import minires.functional as F
from minires import data, models, optim
from minires.nn import fused

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minires"
BACKENDS = ("cpu", "cuda")


def main() -> None:
    print("One training step with its batch, 4 images of 32x32, as it runs:\n")
    rows = [["", "files", "their lines", "functions", "their lines", "lines executed"]]
    for depth, kernels in ((20, "reference"), (101, "reference"), (20, "auto")):
        rows.append([f"ResNet-{depth}, {kernels}", *map(str, trace(training_step(depth, kernels)))])
    print(table(rows))

    files = thread()
    before = files[: files.index(PACKAGE / "tensor.py")]
    start = lines(PACKAGE / "tensor.py").index("class Tensor(Operators):")
    page = ROOT / "examples" / "train_minimal.py"
    print("\nTo be read:\n")
    print(
        table(
            [
                ["the reading order", f"{len(files)} files, {total(files):,} lines"],
                ["before the first Tensor", f"{total(before) + start} lines"],
                ["a page with the whole training loop", f"{len(lines(page))} lines"],
                ["calls from a block's forward to `+ shortcut`", str(calls_to_the_sum())],
                ["imports of a backend in the core", str(len(imports_of_backends()))],
                ["most arguments in the protocol of fused branches", str(most_arguments())],
            ]
        )
    )

    print("\nLines of Python in the package:\n")
    parts = {part.name: total(python_files(part)) for part in sorted(PACKAGE.iterdir()) if python_files(part)}
    everything = sum(parts.values())
    print(
        table(
            [*([name, f"{n:,}", f"{n / everything:.0%}"] for name, n in parts.items()), ["all", f"{everything:,}", ""]]
        )
    )


def table(rows: list[list[str]]) -> str:
    """The cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def lines(path: Path) -> list[str]:
    """The lines of a file."""
    return path.read_text(encoding="utf-8").splitlines()


def python_files(part: Path) -> list[Path]:
    """A file of Python, or those of a folder."""
    return sorted(part.rglob("*.py")) if part.is_dir() else [part] * (part.suffix == ".py")


def total(files: list[Path]) -> int:
    """The lines of all of them."""
    return sum(len(lines(file)) for file in files)


# The path of one step -----------------------------------------------------------------------------------------------


def training_step(depth: int, kernels: str) -> Callable[[], None]:
    """A function that trains on one batch of noise."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 32, 32, 3), np.uint8), rng.integers(0, 10, 8)
    batches = data.Loader(images, labels, 4, mean=(0.5,) * 3, std=(0.25,) * 3, train=True)
    model = models.build(depth, 10, "cifar")
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        mr.kernels.use(kernels)
        try:
            x, y = next(batches.epoch(0))
            loss = F.cross_entropy(model(mr.Tensor(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        finally:
            mr.kernels.use("auto")

    step()  # work that happens only once is not counted
    return step


def trace(step: Callable[[], None]) -> tuple[int, int, int, int, int]:
    """Files entered, their lines, functions entered, their lines, and how many lines run while `step` does."""
    codes: set[CodeType] = set()
    executed: set[tuple[str, int]] = set()

    def follow(frame: FrameType, event: str, argument: Any):
        code = frame.f_code
        if not code.co_filename.startswith(str(PACKAGE)):
            return None
        codes.add(code)
        if event == "line":
            executed.add((code.co_filename, frame.f_lineno))
        return follow

    threading.settrace(follow)  # threads that are made from now on: with one worker there are none
    sys.settrace(follow)
    try:
        step()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    named = [code for code in codes if not code.co_name.startswith("<") or code.co_name == "<lambda>"]
    files = {code.co_filename for code in codes}
    spans: set[tuple[str, int]] = set()  # a nested function lies within its function: each line counts once
    for code in named:
        source, first = inspect.getsourcelines(code)
        spans |= {(code.co_filename, first + i) for i in range(len(source))}
    return len(files), total([Path(file) for file in files]), len(named), len(spans), len(executed)


# The reading order --------------------------------------------------------------------------------------------------


def order_of(path: Path) -> str:
    """What a file's docstring says after "Reading order"."""
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


def thread() -> list[Path]:
    """The files of the core, from the package's first to the training loop, as each names the next."""
    path, files = PACKAGE / "__init__.py", []
    while path.is_relative_to(PACKAGE):
        assert path not in files, f"{path} is visited twice"
        files.append(path)
        (path,) = next_of(path)
    return files


# The shape of the code ----------------------------------------------------------------------------------------------


def calls_to_the_sum() -> int:
    """From the forward of a block of a network to the line with `+ shortcut`: calls on the reference."""
    from minires.nn.branch import branch

    assert "+ shortcut" in inspect.getsource(branch)
    forward = inspect.getsource(models.resnet.Block.forward)
    return 0 if "+ shortcut" in forward else forward.count("nn.branch(")


def imports_of_backends() -> list[str]:
    """Import lines of minires.cpu or minires.cuda, as "file:line", outside of these and of the command line."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in (*BACKENDS, "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(re.match(rf"minires\.({'|'.join(BACKENDS)})\b", name) for name in names):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    return found


def most_arguments() -> int:
    """Of the calls between nn/fused.py and a backend."""
    protocols = (fused.Branch, fused.EvaluateBranch, fused.BranchBackward)
    return max(len(inspect.signature(protocol.__call__).parameters) - 1 for protocol in protocols)


if __name__ == "__main__":
    main()
