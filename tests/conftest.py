"""For all tests: hypothesis profiles, the array libraries, a simulated GPU, a web server, the reasons for skipping.

pytest --nightly            the tests marked `nightly` too
pytest --nightly 2/5        of these, the second of five parts alone, and no other tests: .ci/run, by date

HYPOTHESIS_PROFILE=ci       (default) the same 30 examples every time
HYPOTHESIS_PROFILE=thorough 500 examples, other ones every time
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import threading
import zlib
from collections import Counter
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest
from hypothesis import settings

import minires as mr
from minires import kernels

settings.register_profile("ci", max_examples=30, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=500, derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Programs that tests start keep their compiled modules, whatever the shell says: they begin in half the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that starts pytest in the background has it ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run the tests marked nightly too; or, with I/N, the I-th of N parts of these alone"
    parser.addoption("--nightly", nargs="?", const="all", metavar="I/N", help=text)


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.getoption("nightly")
    if wanted not in (None, "all"):
        part, _, parts = wanted.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise pytest.UsageError(
                f"--nightly {wanted}: expected I/N, such as 2/5, the second of five parts; a path goes before"
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, _, parts = (config.getoption("nightly") or "all").partition("/")
    if part == "all":
        return

    def in_part(item: pytest.Item) -> bool:  # by its name: new tests move no other
        return item.get_closest_marker("nightly") and zlib.crc32(item.nodeid.encode()) % int(parts) == int(part) - 1

    config.hook.pytest_deselected(items=[item for item in items if not in_part(item)])
    items[:] = filter(in_part, items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    nightly = item.get_closest_marker("nightly")
    if nightly and not item.config.getoption("nightly") and not item.get_closest_marker("gpu"):  # which is quick
        pytest.skip(f"nightly: {nightly.args[0]}")
    if item.get_closest_marker("gpu") and mr.cuda.why_not():
        pytest.skip(mr.cuda.why_not())
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> ModuleType:
    """The array library: numpy, and cupy where there is a GPU."""
    return importlib.import_module(request.param)


@pytest.fixture
def gpu():
    """A simulated GPU: `import cupy` gives its CuPy."""
    from tests import simulator  # not above: the core's tests run without minires.cuda

    if simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    with simulator.gpu() as gpu:
        yield gpu


class RealGpu:
    """In the place of a simulated one: it counts nothing."""

    launches, copies, synchronisations = Counter(), {}, 0

    def reset(self):
        pass


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def any_gpu(request):
    """The simulated GPU, and a real one where there is one; `isinstance(any_gpu, simulator.Gpu)` tells."""
    from tests import simulator

    if request.param == "simulated" and simulator.why_not():
        pytest.skip(f"CUDA kernels cannot be simulated: {simulator.why_not()}")
    with simulator.gpu() if request.param == "simulated" else nullcontext(RealGpu()) as gpu:
        yield gpu


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def precision(request):
    """The name of a precision, in use."""
    if request.param == "bf16" and importlib.util.find_spec("ml_dtypes") is None:
        pytest.skip("ml_dtypes is not installed")
    kernels.use_precision(request.param)
    yield request.param
    kernels.use_precision("fp32")


class Server(ThreadingHTTPServer):
    """Serves `content` at every path. `mode` says how well; `ranges` lists the Range headers of the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.mode, self.ranges = b"", "good", []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.mode != "no ranges" else 0
        if server.mode == "missing":
            self.send_error(404)
            return
        if start >= len(server.content) > 0:
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            shift = 1 if server.mode == "wrong place" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Type", "text/html" if server.mode == "html" else "application/x-gzip")
        if server.mode != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # "breaks": a connection that ends after 1000 bytes of every answer
        self.wfile.write(body[:1000] if server.mode == "breaks" else body)

    def do_HEAD(self) -> None:
        server: Server = self.server
        if server.mode == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if server.mode != "no length":
            self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        # 0.02 s: how often the server looks whether it should stop; the default makes each test take half a second.
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
