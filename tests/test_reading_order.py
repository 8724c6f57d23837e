"""The reading order: every file says where it stands, and the next one that it names is there."""

from __future__ import annotations

import re

import pytest

from examples.measure import reading
from examples.measure.reading import PACKAGE, ROOT, lines, next_of, order_of, thread

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


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
            assert listed or re.search(r"any time|when |first|after functional/", order_of(path)), path


def test_the_thread_from_the_array_to_the_weight_update():
    milestones = ["device.py", "tensor.py", "functional/arithmetic.py", "reference.py", "functional/convolution.py",
                  "functional/normalization.py", "nn/module.py", "nn/branch.py", "models/resnet.py",
                  "optim/optimizer.py", "data/loader.py", "train/loop.py"]  # fmt: skip
    names = [path.relative_to(PACKAGE).as_posix() for path in thread()]
    assert [name for name in names if name in milestones] == milestones
    assert next_of(thread()[-1]) == [ROOT / "examples" / "train_cifar.py"]


def test_the_thread_can_be_read_in_a_weekend():
    files = thread()
    assert len(files) <= 30
    assert reading.total(files) <= 4000
    before = files[: files.index(PACKAGE / "tensor.py")]
    start = lines(PACKAGE / "tensor.py").index("class Tensor(Operators):")
    assert reading.total(before) + start <= 200  # before the first Tensor


def test_the_thread_is_the_core_alone():
    assert not [path for path in thread() if path.relative_to(PACKAGE).parts[0] in ("cpu", "cuda", "cli")]


@pytest.mark.parametrize(
    ("first", "last", "folder"),
    [
        ("cpu/workers.py", "cpu/optimizers.py", "cpu"),
        ("weights/mapped.py", "cli/commands.py", "weights"),
    ],
)
def test_the_threads_beside_it(first, last, folder):
    path, thread = PACKAGE / first, [PACKAGE / first]
    while following := next_of(path):
        (path,) = following
        assert path not in thread
        thread.append(path)
    assert path == PACKAGE / last
    assert {file for file in MODULES if file.parent == PACKAGE / folder and file.name != "__init__.py"} <= set(thread)


def test_the_path_of_a_training_step():
    """On the reference kernels, from the loader to the update; the program prints it for other networks too."""
    files, file_lines, functions, function_lines, executed = reading.trace(reading.training_step(20, "reference"))
    assert files <= 20
    assert functions <= 100
    assert executed < function_lines < 1000 < file_lines < 3500


def test_the_shape_of_the_code():
    assert reading.calls_to_the_sum() == 1
    assert reading.imports_of_backends() == []
    assert reading.most_arguments() == 4


def test_an_import_of_a_backend_would_be_counted(tmp_path, monkeypatch):
    (tmp_path / "nn.py").write_text("import minires.cpu.plan\nfrom minires import cuda\nfrom minires.cpu import plan\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "plan.py").write_text("from minires.cpu import workers\n")
    monkeypatch.setattr(reading, "PACKAGE", tmp_path)
    assert reading.imports_of_backends() == ["nn.py:1", "nn.py:2", "nn.py:3"]
