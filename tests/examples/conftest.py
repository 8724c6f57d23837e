"""What the tests of the examples share."""

from __future__ import annotations

import signal
import subprocess

import pytest


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
