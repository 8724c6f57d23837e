"""The worker pool: order, errors, interruption, forks, several callers at once, and BLAS's threads."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from minires import cpu, reference
from minires.cpu import workers

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
        results.append(cpu.conv2d(x, weight, None, **OPTIONS))
        results += cpu.conv2d_backward(dy, x, weight, need_dx=True, need_dweight=True, **OPTIONS)
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


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_while_waiting_for_another_part():
    """It is raised once that part has ended: nobody writes into the caller's arrays any more."""
    workers.set_count(2)
    out = np.zeros(2)

    def task(begin: int, end: int) -> None:
        if begin == 0:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            threading.Event().wait(0.3)
            out[1] = 1

    with pytest.raises(KeyboardInterrupt):
        workers.parallel(task, 2)
    assert out[1] == 1
    assert workers.parallel(lambda a, b: b - a, 2) == [1, 1]


def test_the_count_may_change_at_any_time():
    workers.set_count(2)

    def task(begin: int, end: int) -> tuple[int, int]:
        workers.set_count(3 if begin == 0 else 4)
        return begin, end

    assert workers.parallel(task, 8) == [(0, 4), (4, 8)]
    assert len(workers.parallel(lambda a, b: b - a, 100)) in (3, 4)
    parts = workers.split(8)
    workers.set_count(1)
    assert workers.parallel(lambda a, b: (a, b), 8, parts=parts) == parts


def test_an_error_does_not_keep_the_callers_arrays_alive():
    workers.set_count(2)
    array = np.zeros(3)
    alive = weakref.ref(array)

    def run(held: np.ndarray) -> None:
        def task(begin: int, end: int) -> None:
            if begin:
                raise ZeroDivisionError(str(held.size))

        with contextlib.suppress(ZeroDivisionError):
            workers.parallel(task, 2)

    gc.disable()
    try:
        run(array)
        del array
        assert alive() is None
    finally:
        gc.enable()


def test_a_task_may_itself_run_in_parallel():
    """Every worker waiting for a worker must not be the end."""
    workers.set_count(2)
    done = []

    def nested() -> None:
        done.append(workers.parallel(lambda a, b: workers.parallel(lambda c, d: d - c, 4), 4))

    thread = threading.Thread(target=nested, daemon=True)
    thread.start()
    thread.join(20)
    assert done == [[[2, 2], [2, 2]]]  # each computes all parts of its own call


@pytest.mark.parametrize("channels", [5, 32])
def test_a_task_may_call_kernels(channels):
    """The workers are taken: the kernel's parts are then computed by whoever called it."""
    workers.set_count(2)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 6, 16, 16, channels))
    weight = rng.standard_normal((3, 3, channels, channels))
    exact = reference.conv2d_backward(dy, x, weight, need_dx=True, need_dweight=True, **OPTIONS)
    x, dy, weight = (a.astype(np.float32) for a in (x, dy, weight))
    garbage = [np.full((channels, 9 * channels), np.nan, np.float32) for _ in range(20)]
    del garbage  # the freed memory is what np.empty gets next

    def task(begin: int, end: int) -> tuple:
        return cpu.conv2d_backward(dy, x, weight, need_dx=True, need_dweight=True, **OPTIONS)

    for gradients in workers.parallel(task, 2):
        for a, b in zip(gradients, exact):
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-5 * np.abs(b).max())


def test_scratch_memory_belongs_to_one_thread_and_one_name():
    workers.set_count(2)
    barrier = threading.Barrier(2, timeout=20)  # both parts really run at the same time, in two threads

    def task(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        mine, other = workers.scratch("test a", (3, 4)), workers.scratch("test b", (3, 4))
        mine[...], other[...] = begin, 7
        barrier.wait()
        assert (mine == begin).all()
        assert (other == 7).all()
        return mine, workers.scratch("test a", (2, 5))

    (first, first_again), (second, second_again) = workers.parallel(task, 2)
    assert not np.shares_memory(first, second)
    assert np.shares_memory(first, first_again)
    assert np.shares_memory(second, second_again)


def test_the_zero_border_stays_zero():
    """The buffer is used again for images of the same size, but of other values and numbers."""
    for n, value in ((1, 5.0), (3, 6.0), (2, np.nan), (3, 7.0)):
        padded, inside = workers.framed((n, 2, 3, 2), (2, 1))
        inside[...] = value
        expected = np.pad(np.full((n, 2, 3, 2), value), ((0, 0), (2, 2), (1, 1), (0, 0)))
        np.testing.assert_array_equal(padded, expected)


def test_frames_of_every_size_have_zeros_of_their_own():
    """What one size calls inside is another's border."""
    cases = [
        ((2, 4, 3, 2), (1, 1), None), ((2, 3, 4, 2), (1, 1), None), ((2, 4, 3, 1), (1, 1), None),
        ((2, 4, 3, 2), (2, 0), (6, 7)), ((2, 4, 3, 2), (0, 2), (6, 7)), ((2, 4, 3, 2), (0, 2), (7, 6)),
    ]  # fmt: skip
    for _ in range(2):
        for shape, padding, size in cases:
            padded, inside = workers.framed(shape, padding, size)
            (h, w), (ph, pw) = shape[1:3], padding
            height, width = size or (h + 2 * ph, w + 2 * pw)
            inside[...] = 5
            expected = np.zeros((shape[0], height, width, shape[3]))
            expected[:, ph : ph + h, pw : pw + w] = 5
            np.testing.assert_array_equal(padded, expected)


def test_frames_of_ever_new_sizes_do_not_fill_the_memory():
    for size in [*range(1, 200), *range(1, 200, 7)]:
        padded, inside = workers.framed((1, size, 1, 1), (1, 0))
        assert padded.sum() == inside.sum()  # the border is zero
        inside[...] = size
    assert len(workers._scratch.frames) <= workers.MOST_FRAMES


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


def test_numpys_blas_is_found():
    """Or its threads and ours would be more than there are cores: see threadpoolctl in pyproject.toml."""
    name = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" not in name:
        pytest.skip(f"NumPy computes by {name}")
    assert "openblas" in [pool["internal_api"] for pool in threadpool_info()]


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
from minires import cpu
from minires.cpu import workers
workers.set_count(2)
x, w = np.ones((4, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
def run(): return cpu.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1).sum()
before = run()
child = os.fork()
if child == 0:
    sys.exit(int(run() != before))  # an ordinary end, which joins the child's own threads
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or int(run() != before))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_ends_a_process_that_computes():
    """A real signal, at moments that nobody chose: computing goes on after it, and the process ends by itself."""
    code = """
import numpy as np
from minires import cpu
from minires.cpu import workers
workers.set_count(2)
x, w = np.ones((16, 16, 16, 32), np.float32), np.ones((3, 3, 32, 32), np.float32)
def run(): return cpu.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1).sum()
before = run()
for attempt in range(3):
    try:
        print("computing", flush=True)
        while True: run()
    except KeyboardInterrupt:
        assert run() == before
print("done", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(3):
            assert process.stdout.readline() == "computing\n"
            threading.Event().wait(0.05)
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "done\n"
        assert process.returncode == 0
    finally:
        process.kill()


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5"])
def test_a_wrong_thread_count_is_named(text):
    done = subprocess.run(
        [sys.executable, "-c", "import minires"],
        env={**os.environ, "MINIRES_THREADS": text}, capture_output=True, text=True,
    )  # fmt: skip
    assert f"MINIRES_THREADS is {text!r}, expected an integer >= 1" in done.stderr


def test_the_thread_count_is_obeyed():
    code = "from minires.cpu import workers; print(workers.count)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MINIRES_THREADS": "3"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "3"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_is_respected():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from minires.cpu import workers; print(workers.count)"
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
    y = nn.branch(x, layers, shortcut=x)
    (y * y).mean().backward()
    optimizer.step()
    if step == 20: before = peak()
print((peak() - before) / before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.02
