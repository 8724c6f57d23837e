"""The worker pool: order, errors, interruption, forks, several callers at once, and BLAS's threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from minires import kernels
from minires.kernels.cpu import workers

OPTIONS = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}


@pytest.fixture(autouse=True)
def _restore_count() -> Iterator[None]:
    before = workers.count
    yield
    workers.set_count(before)


def convolution(seed: int = 0) -> list[np.ndarray]:
    """A convolution that Winograd takes and one that it does not, forward and backward."""
    rng = np.random.default_rng(seed)
    results = []
    for channels in (32, 5):
        x, dy = rng.standard_normal((2, 6, 16, 16, channels)).astype(np.float32)
        weight = rng.standard_normal((3, 3, channels, channels)).astype(np.float32)
        results.append(kernels.cpu.conv2d(x, weight, None, **OPTIONS))
        results += kernels.cpu.conv2d_backward(dy, x, weight, need_dx=True, need_dweight=True, **OPTIONS)
    return results


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_cover_the_range_in_order(n, count):
    workers.set_count(count)
    parts = workers.parallel(lambda begin, end: list(range(begin, end)), n)
    assert [i for part in parts for i in part] == list(range(n))
    assert len(parts) == max(1, min(count, n))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_are_bit_identical_for_a_worker_count(count):
    workers.set_count(count)
    first = convolution()
    for _ in range(3):
        for a, b in zip(first, convolution()):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_reaches_the_caller_after_all_parts_have_ended(failing):
    workers.set_count(2)
    ended = []

    def task(begin: int, end: int) -> None:
        if begin == failing:
            raise ZeroDivisionError("in the task")
        threading.Event().wait(0.05)
        ended.append(begin)

    with pytest.raises(ZeroDivisionError, match="in the task"):
        workers.parallel(task, 2)
    assert ended == [1 - failing]
    assert workers.parallel(lambda a, b: b - a, 2) == [1, 1]  # and the pool goes on working


def test_ctrl_c_in_the_callers_part_waits_for_the_others():
    workers.set_count(2)
    ended = threading.Event()

    def task(begin: int, end: int) -> None:
        if begin == 0:
            raise KeyboardInterrupt
        threading.Event().wait(0.05)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        workers.parallel(task, 2)
    assert ended.is_set()
    assert workers.parallel(lambda a, b: b - a, 2) == [1, 1]


def test_a_task_may_itself_run_in_parallel():
    """Every worker waiting for a worker must not be the end."""
    workers.set_count(2)
    done = []

    def nested() -> None:
        done.append(workers.parallel(lambda a, b: workers.parallel(lambda c, d: d - c, 4), 4))

    thread = threading.Thread(target=nested, daemon=True)
    thread.start()
    thread.join(20)
    assert done == [[[2, 2], [4]]]  # the caller's part splits its work again, the worker's does not


def test_several_user_threads_at_once():
    workers.set_count(2)
    expected = [convolution(seed) for seed in range(4)]
    wrong = []

    def user(seed: int) -> None:
        for _ in range(5):
            for a, b in zip(convolution(seed), expected[seed]):
                if not np.array_equal(a, b):
                    wrong.append(seed)

    threads = [threading.Thread(target=user, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_gets_its_threads_back():
    before = blas_threads()
    inside = workers.parallel(lambda a, b: blas_threads(), 2)
    assert all(threads == 1 for part in inside for threads in part)
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_compute():
    code = """
import os, sys
import numpy as np
from minires.kernels import cpu
from minires.kernels.cpu import workers
workers.set_count(2)
x, w = np.ones((4, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
def run(): return cpu.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1).sum()
before = run()
child = os.fork()
if child == 0:
    os._exit(0 if run() == before else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or int(run() != before))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5"])
def test_a_wrong_thread_count_is_named(text):
    done = subprocess.run(
        [sys.executable, "-c", "import minires"],
        env={**os.environ, "MINIRES_THREADS": text}, capture_output=True, text=True,
    )  # fmt: skip
    assert f"MINIRES_THREADS is {text!r}, expected an integer >= 1" in done.stderr


def test_the_thread_count_is_obeyed():
    code = "from minires.kernels.cpu import workers; print(workers.count)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MINIRES_THREADS": "3"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "3"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_is_respected():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from minires.kernels.cpu import workers; print(workers.count)"
    environment = {k: v for k, v in os.environ.items() if k != "MINIRES_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1"


def test_memory_does_not_grow_over_200_steps():
    code = """
import resource
import numpy as np
import minires as mr, minires.functional as F
from minires import nn, optim
layers = [(nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)) for a, b in ((3, 32), (32, 3))]
parameters = [p for pair in layers for m in pair for p in m.parameters()]
optimizer = optim.Adam(parameters)
x = mr.Tensor(np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype(np.float32))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in range(220):
    optimizer.zero_grad()
    y = nn.branch(x, layers, residual=x)
    (y * y).mean().backward()
    optimizer.step()
    if step == 20: before = peak()
print((peak() - before) / before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.02
