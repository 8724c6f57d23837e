"""The worker pool: how NumPy uses every core for everything, not only for matrix products.

NumPy releases Python's global lock while it computes, so plain Python threads run array work side by side.
A kernel splits its batch into one part for each worker and gives each part, start to end, to one thread;
BLAS is held to one thread meanwhile, since its own threads would compete for the same cores. Matrix products
gain nothing from this, but all the rest (im2col, batch norm, ReLU) becomes parallel too: a ResNet-18 training
step of one worker takes 2626 ms, of two 1579 (docs/fast-cpu.md).

Two rules make it work. Calls of less than 20 microseconds do not scale, because each holds the lock to start:
so few, large calls. And an array of more than a megabyte has left the cache before the next operation reads it:
so each part is worked through in chunks, and the chunk's temporaries live in scratch buffers that are used again.

Reading order: first in kernels/cpu/. Next: matmul.py.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

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
    page fault and is zeroed first: 15 % of a ResNet-20 step. glibc only; elsewhere nothing changes.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: arrays below 1 GiB come from the heap
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: and the heap does not shrink
    except (OSError, AttributeError):
        pass  # not glibc: the allocator keeps its own rules


_keep_freed_memory()
count = _configured_count()  # how many workers share the work, the calling thread among them
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def set_count(workers: int) -> None:
    """Use `workers` threads from now on. Results are bit-identical from run to run for the same count only."""
    global count, _pool
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    with _pool_lock:
        count, old, _pool = workers, _pool, None
    if old is not None:
        old.shutdown()


def _forget_after_fork() -> None:
    """Threads do not survive a fork: the child makes its own pool, and its own locks, at its first kernel."""
    global _pool, _pool_lock, _blas
    _pool, _pool_lock, _blas = None, threading.Lock(), _OneBlasThread()


THREAD_NAME = "minires worker"


def split(n: int) -> list[tuple[int, int]]:
    """range(n) in at most `count` contiguous parts of almost equal length, none empty unless n is 0.

    A task may call a kernel itself: a worker then does all of it, since workers waiting for workers wait forever.
    """
    within_task = threading.current_thread().name.startswith(THREAD_NAME)
    parts = 1 if within_task else max(min(count, n), 1)
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


SMALL_BYTES = 1 << 20  # one core copies this in the time it takes to wake another and to wait for it, 0.1 ms


def parallel(task: Callable[[int, int], Result], n: int, nbytes: int | None = None) -> list[Result]:
    """[task(begin, end) for each part of range(n)], the parts computed at the same time.

    nbytes   how much memory the task goes through, if it may be too little to be worth splitting

    The results come in the order of the parts, whichever is finished first, so that sums over them are
    reproducible. An exception in any part is raised here, once no part is running any more: nobody still
    writes into the caller's arrays.
    """
    global _pool
    parts = [(0, n)] if nbytes is not None and nbytes < SMALL_BYTES else split(n)
    with _blas.limited():
        if len(parts) == 1:
            return [task(*parts[0])]
        with _pool_lock:
            if _pool is None:
                _pool = ThreadPoolExecutor(count - 1, thread_name_prefix=THREAD_NAME)
            others: list[Future[Result]] = [_pool.submit(task, *part) for part in parts[1:]]
        try:
            first = task(*parts[0])
        finally:
            wait(others)  # also when Ctrl-C arrives in this thread's own part
        return [first, *(other.result() for other in others)]


class _OneBlasThread:
    """Holds BLAS to one thread while any kernel runs, in whichever thread, and gives it back its own afterwards."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.controller: ThreadpoolController | None = None

    @contextmanager
    def limited(self) -> Iterator[None]:
        with self.lock:
            if self.controller is None:
                self.controller = ThreadpoolController().select(user_api="blas")
            if self.users == 0:
                self.limit = self.controller.limit(limits=1)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.limit.restore_original_limits()


_blas = _OneBlasThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


# Scratch buffers: one set for each thread, so that no two tasks meet in one.
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


def zero_bordered(images: np.ndarray, padding: tuple[int, int]) -> np.ndarray:
    """`images` (m,H,W,C) inside a border of zeros: (m,H+2ph,W+2pw,C), in scratch memory.

    Only the inside is written. The border was zeroed when the buffer was made, and stays so, because every buffer
    serves images of one size only.
    """
    m, h, w, c = images.shape
    ph, pw = padding
    key = f"zero_bordered {h}x{w}x{c}+{ph},{pw}"
    buffer = _scratch.__dict__.get(key)
    if buffer is None or buffer.shape[0] < m:
        buffer = _scratch.__dict__[key] = np.zeros((m, h + 2 * ph, w + 2 * pw, c), np.float32)
    buffer[:m, ph : ph + h, pw : pw + w] = images
    return buffer[:m]
