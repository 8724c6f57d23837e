"""For all tests: hypothesis profiles, the array libraries, and the reasons for skipping.

HYPOTHESIS_PROFILE=ci       (default) the same 30 examples every time
HYPOTHESIS_PROFILE=nightly  500 examples, other ones every time
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import pytest
from hypothesis import settings

import minires as mr

settings.register_profile("ci", max_examples=30, derandomize=True, deadline=None)
settings.register_profile("nightly", max_examples=500, derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and mr.cuda.why_not():
        pytest.skip(mr.cuda.why_not())
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> ModuleType:
    """The array library: numpy, and cupy where there is a GPU."""
    return importlib.import_module(request.param)
