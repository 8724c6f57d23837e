"""Tests as cases of a stage: a plugin of pytest that writes a row for each test that fails, at once."""

from __future__ import annotations

from typing import Any

import pytest

from examples.measure.gpu.cases import Cases

LIMIT = 30  # seconds for a test: the first of a file may have to draw images, and to compile


class TestCases:
    """Every test is a case, numbered in the order of collection; `counts` has the passed, failed and skipped tests."""

    __test__ = False  # no test itself, whatever its name

    def __init__(self, cases: Cases):
        self.cases = cases
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.collected = 0  # of all processes
        self.late = False  # whether the stage's time was up before the last test
        self._case: Any = None

    @pytest.hookimpl(trylast=True)  # after -m and -k have chosen
    def pytest_collection_modifyitems(self, items: list) -> None:
        """Only those that this process is to run."""
        self.collected = len(items)
        items[:] = items[self.cases.first : self.cases.beyond]
        self.cases.number = self.cases.first

    def pytest_sessionstart(self, session: Any) -> None:
        """Before the tests are collected."""
        self._session = session

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported."""
        if report.failed:
            self._failed(report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._case = self.cases.case(nodeid, limit=LIMIT)
        self._case.__enter__()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Its set-up, the test itself, or its tear-down has ended."""
        if report.failed:
            self._failed(report)
        elif report.when == "call" or report.skipped:
            self.counts[report.outcome] += 1

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It has ended."""
        self._case.__exit__(None, None, None)
        if self.cases.time_left < 2 and self.cases.number < self.collected:
            self.late, self._session.shouldstop = True, "the stage's time is up"

    def _failed(self, report: Any) -> None:
        self.counts["failed"] += 1
        trace = report.longreprtext
        said = [line[2:].strip() for line in trace.splitlines() if line.startswith("E ")] or trace.splitlines()[-1:]
        self.cases.failed(report.nodeid, " ".join(said[:6]), trace)
