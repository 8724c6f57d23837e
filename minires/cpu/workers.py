"""The worker pool: how NumPy uses every core for everything, not only for matrix products.

NumPy releases Python's global lock while it computes, so plain Python threads run array work side by side.
A kernel splits its batch into one part for each worker and gives each part, start to end, to one thread;
BLAS is held to one thread meanwhile, since its own threads would compete for the same cores. Matrix products
gain nothing from this, but all the rest (im2col, batch norm, ReLU) becomes parallel too: two workers take little
more than half as long as one for a ResNet-18 training step (docs/fast-cpu.md has the times).

Two rules make it work. Calls of less than 20 microseconds do not scale, because each holds the lock to start:
so few, large calls. And an array of more than a megabyte has left the cache before the next operation reads it:
so each part is worked through in chunks, and the chunk's temporaries live in scratch buffers that are used again.

Reading order: first in cpu/. Next: matmul.py.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import LibController, ThreadpoolController

Result = TypeVar("Result")


def available_cores() -> int:
    """The cores that this process may use: its affinity mask, cut by the CPU quota of its cgroup (containers)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # "max 100000" where there is no limit
        if quota != "max":
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass  # not Linux, or an older kind of cgroup: the affinity mask is what there is to go by
    return cores


def _configured_count() -> int:
    text = os.environ.get("MINIRES_THREADS")
    if text is None:
        return available_cores()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MINIRES_THREADS is {text!r}, expected an integer >= 1")
    return int(text)


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next array, instead of returning it to the system.

    A training step allocates and frees several gigabytes in large arrays. Fresh from the system, each page costs a
    page fault and is zeroed first: a fifth of a ResNet-20 step. glibc only; elsewhere nothing changes.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: arrays below 1 GiB come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: and the heap does not shrink
    except (OSError, AttributeError):
        pass  # not glibc: the allocator keeps its own rules


_keep_freed_memory()
count = _configured_count()  # how many workers share the work, the calling thread among them


def threads() -> int:
    """How many threads share the work."""
    return count


def set_count(workers: int) -> None:
    """Use `workers` threads from now on. Results are bit-identical from run to run for the same count only."""
    global count
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    count = workers


def split(n: int) -> list[tuple[int, int]]:
    """range(n) in at most `count` contiguous parts of almost equal length, none empty unless n is 0."""
    parts = max(min(count, n), 1)
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


SMALL_BYTES = 1 << 20  # one core copies this in the time it takes to wake another and to wait for it, 0.1 ms


def parallel(
    task: Callable[[int, int], Result],
    n: int,
    nbytes: int | None = None,
    parts: list[tuple[int, int]] | None = None,
) -> list[Result]:
    """[task(begin, end) for each part of range(n)], the parts computed at the same time.

    nbytes   how much memory the task goes through, if it may be too little to be worth splitting
    parts    of range(n), if the caller has them from `split` already

    The results come in the order of the parts, whichever is finished first, so that sums over them are
    reproducible. An exception in any part is raised here, once no part is running any more: nobody still
    writes into the caller's arrays; so is Ctrl-C. While the workers are busy (with another user thread's task, or
    because a task itself calls a kernel) the caller computes all parts: nobody waits for a worker who waits.
    """
    if parts is None:
        parts = [(0, n)] if nbytes is not None and nbytes < SMALL_BYTES else split(n)
    with _blas.limited():
        if len(parts) == 1:
            return [task(*parts[0])]
        have_team = False
        try:
            have_team = _team_in_use.acquire(blocking=False)
            if not have_team:
                return [task(*part) for part in parts]
            while len(_team) < len(parts) - 1:
                _team.append(_Worker())
            return _share(task, parts)
        finally:
            if have_team:
                _team_in_use.release()


def _share(task: Callable[[int, int], Result], parts: list[tuple[int, int]]) -> list[Result]:
    """The first part is computed here, each of the others by one of the team."""
    jobs: list[_Job] = []
    interruption = None
    try:
        for worker, part in zip(_team, parts[1:]):
            job = _Job(task, part)
            worker.inbox.put(job)
            jobs.append(job)  # in this order: whatever Ctrl-C cuts, nobody waits for a job that was never given out
        first = task(*parts[0])
    finally:
        for job in jobs:
            while not job.done:
                try:
                    job.finished.acquire()
                except KeyboardInterrupt as error:  # only once all parts have ended
                    interruption = error
    errors = [error for error in (interruption, *(job.error for job in jobs)) if error is not None]
    if errors:
        try:
            raise errors[0]
        finally:
            for job in jobs:
                job.error = None  # its traceback holds this frame: a circle that would keep the arrays alive
            del errors, interruption
    return [first, *(job.result for job in jobs)]


class _Job:
    """A part of a task on its way through a worker."""

    def __init__(self, task: Callable[[int, int], Any], part: tuple[int, int]) -> None:
        self.task, self.part = task, part
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.finished = threading.Lock()  # free once the job is done
        self.finished.acquire()

    def run(self) -> None:
        """Compute, and say so."""
        try:
            self.result = self.task(*self.part)
        except BaseException as error:  # whatever it is, the caller gets it
            self.error = error
        self.done = True
        self.finished.release()


class _Worker:
    """A thread that runs what is put into its inbox."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue = SimpleQueue()
        threading.Thread(target=self._run, name="minires worker", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.inbox.get().run()


class _OneBlasThread:
    """Holds BLAS to one thread while any kernel runs, in whichever thread, and gives it back its own afterwards."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.libraries: list[LibController] | None = None

    @contextmanager
    def limited(self) -> Iterator[None]:
        entered = False
        try:
            with self.lock:
                if self.libraries is None:
                    self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
                if self.users == 0:
                    self.threads = [(library, library.num_threads) for library in self.libraries]
                    for library in self.libraries:
                        library.set_num_threads(1)
                self.users += 1
                entered = True
            yield
        finally:
            if entered:
                with self.lock:
                    self.users -= 1
                    if self.users == 0:
                        for library, threads in self.threads:
                            library.set_num_threads(threads)


_team: list[_Worker] = []  # the workers beside the calling thread
_team_in_use = threading.Lock()
_blas = _OneBlasThread()


def _forget_after_fork() -> None:
    """Threads do not survive a fork: the child makes its own workers, and its own locks, at its first kernel."""
    global _team, _team_in_use, _blas
    _team, _team_in_use, _blas = [], threading.Lock(), _OneBlasThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


# Scratch buffers: one set for each thread, so that no two tasks meet in one.
MOST_FRAMES = 64  # ResNet-101 needs 8
_scratch = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An uninitialised array, the same memory at each call with this `name` in this thread.

    The last array of that name is overwritten: a name stands for one temporary of one kernel.
    """
    buffers = _scratch.__dict__
    size = 1
    for n in shape:
        size *= n
    buffer = buffers.get(name)
    if buffer is None or buffer.size < size or buffer.dtype != dtype:
        buffer = buffers[name] = np.empty(size, dtype)
    return buffer[:size].reshape(shape)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in bytes, of a contiguous float32 array.

    `array.strides` may differ along an axis of length 1, where a contiguous view keeps any stride.
    """
    strides = [4]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides))


def framed(
    shape: tuple[int, int, int, int], padding: tuple[int, int], size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Room for images of `shape` (m,H,W,C) in a frame of zeros: the whole (m, *size, C) and its inside (m,H,W,C).

    padding   of the frame above and to the left
    size      of the whole; default: the same padding below and to the right, (H+2ph, W+2pw)

    In scratch memory; only the inside may be written to. The frame was zeroed when the buffer was made, and stays so,
    because every buffer serves images of one size only. Of ever new sizes, the last MOST_FRAMES are kept.
    """
    (m, h, w, c), (ph, pw) = shape, padding
    size = size or (h + 2 * ph, w + 2 * pw)
    frames, key = _scratch.__dict__.setdefault("frames", {}), (h, w, c, padding, size)
    buffer = frames.get(key)
    if buffer is None or buffer.shape[0] < m:
        if len(frames) >= MOST_FRAMES:
            del frames[next(iter(frames))]  # the oldest
        buffer = frames[key] = np.zeros((m, *size, c), np.float32)
    return buffer[:m], buffer[:m, ph : ph + h, pw : pw + w]
