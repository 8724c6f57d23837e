"""What the tests of the examples share."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys

import pytest

import minires as mr
from minires import data, kernels

PICTURES = ("curves.png", "confusion.png", "mistakes.png")


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A data folder in which Shapes-10 has been drawn: once, for all tests."""
    path = tmp_path_factory.mktemp("data")
    data.shapes10(path)
    return path


@pytest.fixture(scope="session")
def without_matplotlib(tmp_path_factory):
    """A PYTHONPATH on which matplotlib cannot be imported."""
    path = tmp_path_factory.mktemp("without")
    (path / "matplotlib.py").write_text("raise ImportError('hidden by tests/examples/conftest.py')\n")
    return os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """The trainings of a test draw no pictures, which would take 2.5 of the 4 seconds of a small run. Those in this
    process leave empty files in their place.

    A test that looks at the pictures of a training asks for the fixture `pictures`.
    """

    def touch(training, evaluation, dataset, folder, *args, **options):
        for name in PICTURES:
            (folder / name).touch()

    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("minires.train.report.draw_pictures", touch)
        monkeypatch.setenv("PYTHONPATH", request.getfixturevalue("without_matplotlib"))


@pytest.fixture
def pictures():
    """matplotlib, for the programs that the test starts; the test is skipped where it is not installed."""
    return pytest.importorskip("matplotlib")


@pytest.fixture
def run_here(monkeypatch, capsys):
    """What `subprocess.run([python, script, *words], cwd)` returns, by this process: it has imported everything."""
    choice, drawn = kernels._choice, mr.default_generator().bit_generator.state

    def run_here(command, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [*map(str, command[1:])])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(sys.argv[0], run_name="__main__")
        return subprocess.CompletedProcess(command, stopped.value.code, *capsys.readouterr())

    yield run_here
    kernels.use(choice)
    kernels.use_precision("fp32")
    mr.default_generator().bit_generator.state = drawn


@pytest.fixture
def interrupt():
    """Start a program, send it a signal once it says `at`, and wait for its end: (status, stdout, stderr)."""

    def interrupt(command, cwd, at="batch 1/", number=signal.SIGINT):
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if at in line:
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=120)
        return process.returncode, "".join(lines) + out, err

    return interrupt
