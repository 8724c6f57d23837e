"""As much of CuPy as minires uses, on NumPy: counts the requests to a GPU, and refuses what a GPU cannot do.

`module(gpu)` makes a module named cupy. Its arrays wrap NumPy arrays with memory from a pool like CuPy's. Each
operation is one launch on a device that works asynchronously. A launch runs at once, or is recorded while the stream is
being captured and runs when the graph is launched.

Reading order: after compiler.py. Next: fake_cublas.py.
"""

from __future__ import annotations

import builtins
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.simulator import compiler

ALIGNMENT = 512  # bytes, as CuPy's pool


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError; `status` is the number of the error."""

    def __init__(self, text: str, status: int = 0):
        super().__init__(text)
        self.status = status


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


# Memory -----------------------------------------------------------------------------------------------------


OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class DeviceMemory:
    """As cupy.cuda.Memory: bytes straight from the device."""

    gpu: Gpu  # set on a subclass for each gpu

    def __init__(self, size: int):
        if self.gpu.used_bytes + size > self.gpu.memory_bytes:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory", OUT_OF_MEMORY)
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self.block = raw[start : start + size]
        self.gpu.used_bytes += size
        self.gpu.blocks[self.block.ctypes.data] = self.block


class MemoryPointer:
    """As cupy.cuda.MemoryPointer: a place in memory."""

    def __init__(self, mem: DeviceMemory, offset: int):
        self.mem, self.offset = mem, offset


class Memory:
    """A block of device memory, which returns to its pool when its last array is deleted."""

    def __init__(self, pool: MemoryPool, block: np.ndarray, size: int):
        self.pool, self.block, self.size = pool, block, size

    def __del__(self) -> None:
        self.pool._give_back(self.block)


class MemoryPool:
    """Keeps freed blocks and hands them out again, as cupy.cuda.MemoryPool does, but never a part of a block.

    A deleted pool never returns its memory to the device, as in CuPy.
    """

    gpu: Gpu  # set on a subclass for each gpu

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._allocate = allocator or (lambda size: MemoryPointer(self.gpu.memory_class(size), 0))
        self._free: dict[int, list[np.ndarray]] = {}
        self._total = self._used = 0

    def malloc(self, size: int) -> Memory:
        """`size` bytes, full of NaN."""
        rounded = max(-(-size // ALIGNMENT), 1) * ALIGNMENT
        blocks = self._free.get(rounded)
        if blocks:
            block = blocks.pop()
        else:
            block = self._from_device(size, rounded)
            self._total += rounded
        block[...] = 0xFF
        self._used += rounded
        self.gpu.live_bytes += rounded
        self.gpu.peak_bytes = builtins.max(self.gpu.peak_bytes, self.gpu.live_bytes)
        return Memory(self, block, size)

    def _from_device(self, size: int, rounded: int) -> np.ndarray:
        try:
            return self._allocate(rounded).mem.block
        except CUDARuntimeError:  # as CuPy: return the free blocks to the device, then try again
            self.free_all_blocks()
        try:
            return self._allocate(rounded).mem.block
        except CUDARuntimeError as error:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {self.gpu.used_bytes:,} bytes)."
            ) from error

    def _give_back(self, block: np.ndarray) -> None:
        self._free.setdefault(block.size, []).append(block)
        self._used -= block.size
        self.gpu.live_bytes -= block.size

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give free blocks back to the device."""
        for size, blocks in self._free.items():
            self._total -= size * len(blocks)
            self.gpu.used_bytes -= size * len(blocks)
            for block in blocks:
                self.gpu.blocks.pop(block.ctypes.data)
        self._free.clear()

    def used_bytes(self) -> int:
        """Bytes in arrays."""
        return self._used

    def total_bytes(self) -> int:
        """Bytes taken from the device."""
        return self._total


class Gpu:
    """The simulated device and what has happened on it.

    launches          Counter of kernel names, and of array operations that launch a kernel in CuPy
    copies            Counter of "to device" and "to host"
    synchronisations  number of times that the host has waited for the device
    """

    def __init__(self, memory_bytes: int, reverse: bool, capability: tuple[int, int] = (9, 0)):
        self.memory_bytes, self.reverse, self.capability = memory_bytes, reverse, capability
        self.used_bytes = self.live_bytes = self.peak_bytes = 0
        self.blocks: dict[int, np.ndarray] = {}
        self.reset()
        self.pool_class = type("MemoryPool", (MemoryPool,), {"gpu": self})
        self.memory_class = type("Memory", (DeviceMemory,), {"gpu": self})
        self.default_pool = self.pool_class()
        self.allocate = self.default_pool.malloc
        self.null_stream = self.current_stream = Stream._make(self, null=True)

    def reset(self) -> None:
        """Set all counters to 0."""
        self.launches: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.synchronisations = 0

    def run(self, name: str, action: Callable[[], None]) -> None:
        """One piece of work on the current stream."""
        self.launches[name] += 1
        recorded = self.current_stream.recorded
        if recorded is None:
            action()
        else:
            recorded.append((name, action))

    def synchronise(self, why: str) -> None:
        """The host waits; not allowed while a stream is captured."""
        self._not_in_capture(why)
        self.synchronisations += 1

    def copy(self, direction: str) -> None:
        """A copy between host and device."""
        self._not_in_capture(f"a copy {direction}")
        self.copies[direction] += 1

    def _not_in_capture(self, what: str) -> None:
        if self.current_stream.recorded is not None:
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while the stream is being captured")

    def at(self, address: int, size: int) -> np.ndarray:
        """The bytes at an address; they must lie within one block of the device's memory."""
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + block.size:
                return block[address - start : address - start + size]
        raise CUDARuntimeError(f"cudaErrorIllegalAddress: {size} bytes at {address:#x} are not on the device")


# Arrays -----------------------------------------------------------------------------------------------------


def _checked(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype == np.float64:
        raise TypeError("float64 on the device: a Python float or a dtype was lost on the way")
    return dtype


class ndarray:
    """cupy.ndarray: `_host` is the memory, seen by NumPy; `_memory` keeps it from being given away."""

    __array_ufunc__ = None
    gpu: Gpu

    def __init__(self, host: np.ndarray, memory: Memory):
        self._host, self._memory = host, memory

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    flags = property(lambda self: self._host.flags)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: self.transpose())

    @property
    def data(self) -> Any:
        """`.ptr` is the address."""
        return SimpleNamespace(ptr=self._host.ctypes.data)

    def _view(self, host: np.ndarray) -> ndarray:
        return type(self)(host, self._memory)

    def _compute(self, name: str, function: Callable, *others: Any) -> ndarray:
        return self.gpu.compute(name, function, self, *others)

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape: Any) -> ndarray:
        """A view where there is one, else a copy."""
        host = self._host.reshape(*shape)
        if np.may_share_memory(host, self._host):
            return self._view(host)
        return self._compute("copy", lambda a: a.reshape(*shape))

    def ravel(self) -> ndarray:
        """One axis."""
        return self.reshape(-1)

    def view(self, dtype: Any) -> ndarray:
        """The same memory as another dtype."""
        return self._view(self._host.view(dtype))

    def transpose(self, *axes: Any) -> ndarray:
        """A view with the axes permuted."""
        return self._view(self._host.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> ndarray:
        """A view with two axes exchanged."""
        return self._view(self._host.swapaxes(a, b))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        """A converted copy."""
        if not copy and self.dtype == dtype:
            return self
        return self._compute("astype", lambda a: a.astype(_checked(dtype)))

    def copy(self) -> ndarray:
        """A copy."""
        return self._compute("copy", np.array)

    def fill(self, value: Any) -> None:
        """Every element becomes `value`."""
        self[...] = value

    def sum(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        """A reduction."""
        return self._compute("sum", lambda a: a.sum(axis=axis, keepdims=keepdims))

    def mean(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        """A reduction; CuPy's mean of integers is float64, and refused here."""
        return self._compute("mean", lambda a: a.mean(axis=axis, keepdims=keepdims))

    def max(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        """A reduction."""
        return self._compute("max", lambda a: a.max(axis=axis, keepdims=keepdims))

    def min(self, axis: Any = None, keepdims: bool = False) -> ndarray:
        """A reduction."""
        return self._compute("min", lambda a: a.min(axis=axis, keepdims=keepdims))

    def all(self) -> ndarray:
        """A reduction."""
        return self._compute("all", np.all)

    def argmax(self, axis: int | None = None) -> ndarray:
        """A reduction."""
        return self._compute("argmax", lambda a: a.argmax(axis=axis))

    def get(self) -> np.ndarray:
        """A copy on the host: waits for the device."""
        self.gpu.copy("to host")
        self.gpu.synchronise("a copy to the host")
        return self._host.copy()

    def set(self, host: np.ndarray) -> None:
        """Copy `host`, of the same shape and dtype, into this array."""
        if host.shape != self.shape or host.dtype != self.dtype:
            raise ValueError(f"set: got {host.dtype} {host.shape}, expected {self.dtype} {self.shape}")
        self.gpu.copy("to device")
        self._host[...] = host

    def item(self) -> Any:
        """The only element: waits for the device."""
        self.gpu.synchronise("item()")
        return self._host.item()

    def tolist(self) -> list:
        """On the host."""
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __getitem__(self, index: Any) -> ndarray:
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(part, (ndarray, np.ndarray, list)) for part in parts):
            parts = parts if any(part is Ellipsis for part in parts) else (*parts, ...)
            return self._view(self._host[parts])  # with ..., even one element is a view
        for part in parts:
            self.gpu.refuse_host(part)
        arrays = [part for part in parts if isinstance(part, ndarray)]

        def take(a: np.ndarray, *indices: np.ndarray) -> np.ndarray:
            left = iter(indices)
            return a[tuple(next(left) if isinstance(part, ndarray) else part for part in parts)]

        return self._compute("take", take, *arrays)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.gpu.refuse_host(value)
        parts = tuple(
            p._host if isinstance(p, ndarray) else p for p in (index if isinstance(index, tuple) else (index,))
        )
        source = value._host if isinstance(value, ndarray) else value

        def assign() -> None:
            self._host[parts] = source

        if self.size:
            self.gpu.run("assign", assign)

    def __repr__(self) -> str:
        return f"simulated {self._host!r}"

    def __deepcopy__(self, memo: dict) -> ndarray:
        return self.copy()


def _operator(name: str, function: Callable, reflected: bool = False) -> Callable:
    def method(self: ndarray, other: Any) -> ndarray:
        def both(a: np.ndarray, b: Any) -> np.ndarray:
            return function(b, a) if reflected else function(a, b)

        return self._compute(name, both, other)

    return method


def _in_place(name: str, function: Callable) -> Callable:
    def method(self: ndarray, other: Any) -> ndarray:
        self.gpu.refuse_host(other)
        source = other._host if isinstance(other, ndarray) else other

        def update() -> None:
            self._host[...] = function(self._host, source).astype(self.dtype)

        if self.size:
            self.gpu.run(name, update)
        return self

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and", "or", "xor"):
    _function = getattr(operator, _name + "_" * (_name in ("and", "or")))
    setattr(ndarray, f"__{_name}__", _operator(_name, _function))
    setattr(ndarray, f"__r{_name}__", _operator(_name, _function, reflected=True))
    setattr(ndarray, f"__i{_name}__", _in_place(_name, _function))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(_name, getattr(operator, _name)))
for _name in ("neg", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", lambda self, n=_name: self._compute(n, getattr(operator, n)))
ndarray.__hash__ = None


def _compute(gpu: Gpu, name: str, function: Callable, *operands: Any) -> ndarray:
    """function(*operands) as a new array: one launch. A capture computes the function too, on any values, for the shape
    of the result."""
    for operand in operands:
        gpu.refuse_host(operand)
    hosts = [operand._host if isinstance(operand, ndarray) else operand for operand in operands]
    with np.errstate(all="ignore"):
        value = np.asarray(function(*hosts))
    out = gpu.empty(value.shape, _checked(value.dtype))

    def run() -> None:
        with np.errstate(all="ignore"):
            out_host[...] = function(*hosts)

    out_host = out._host
    if out.size:  # like CuPy, which launches nothing for an empty result
        gpu.run(name, run)
    return out


def _refuse_host(gpu: Gpu, value: Any) -> None:
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(
            f"Unsupported type {type(value)}: a host array of shape {value.shape} meets an array on the device"
        )


def _empty(gpu: Gpu, shape: Any, dtype: Any = np.float64) -> ndarray:
    shape = tuple(int(n) for n in shape) if isinstance(shape, (tuple, list)) else (int(shape),)
    dtype = _checked(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = gpu.allocate(size)
    return gpu.ndarray(memory.block[:size].view(dtype).reshape(shape), memory)


Gpu.compute, Gpu.refuse_host, Gpu.empty = _compute, _refuse_host, _empty


# Streams, graphs, events ------------------------------------------------------------------------------------


class Graph:
    """Recorded work."""

    def __init__(self, gpu: Gpu, work: list):
        self.gpu, self.work = gpu, work

    def launch(self, stream: Any = None) -> None:
        """Run it again."""
        self.gpu.launches["graph"] += 1
        for _, action in self.work:
            action()


class Stream:
    """cupy.cuda.Stream; work is done in order, at once."""

    gpu: Gpu

    def __init__(self, non_blocking: bool = False):
        self.ptr, self.recorded = id(self), None
        self._previous: list = []

    @classmethod
    def _make(cls, gpu: Gpu, null: bool) -> Stream:
        stream = type("Stream", (cls,), {"gpu": gpu})()
        stream.ptr = 0 if null else stream.ptr
        return stream

    def __enter__(self) -> Stream:
        self._previous.append(self.gpu.current_stream)
        self.gpu.current_stream = self
        return self

    def __exit__(self, *_: object) -> None:
        self.gpu.current_stream = self._previous.pop()

    def synchronize(self) -> None:
        """Wait."""
        self.gpu.synchronise("synchronize()")

    def begin_capture(self, mode: int | None = None) -> None:
        """Record from now on."""
        self.recorded = []

    def end_capture(self) -> Graph:
        """What was recorded."""
        work, self.recorded = self.recorded, None
        return Graph(self.gpu, work)

    def is_capturing(self) -> bool:
        """Whether work is being recorded."""
        return self.recorded is not None


class Event:
    """cupy.cuda.Event: a point in time."""

    gpu: Gpu

    def record(self, stream: Any = None) -> None:
        """Now."""
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for it."""
        self.gpu.synchronise("an event")


# The module -------------------------------------------------------------------------------------------------


def module(gpu: Gpu) -> ModuleType:
    """A module `cupy` on the device `gpu`."""
    cupy = ModuleType("cupy")
    array_class = type("ndarray", (ndarray,), {"gpu": gpu, "__module__": "cupy"})
    gpu.ndarray = array_class
    cupy._gpu, cupy.__version__, cupy.ndarray = gpu, "simulated", array_class
    for name in ("float32", "int32", "int64", "uint8", "bool_", "inf", "nan", "pi", "newaxis", "float64"):
        setattr(cupy, name, getattr(np, name))

    def operation(name: str) -> Callable:
        function = getattr(np, name)

        def call(*arguments: Any, **options: Any) -> ndarray:
            return gpu.compute(name, lambda *hosts: function(*hosts, **options), *arguments)

        return call

    for name in ("sqrt", "exp", "log", "maximum", "minimum", "isfinite", "add", "pad", "abs", "sign", "where", "sum"):
        setattr(cupy, name, operation(name))
    cupy.add.at = lambda a, index, b: gpu.run("add.at", lambda: np.add.at(a._host, _hosts(index), _hosts(b)))

    def asarray(value: Any, dtype: Any = None) -> ndarray:
        if isinstance(value, ndarray):
            return value if dtype is None or value.dtype == dtype else value.astype(dtype)
        host = np.asarray(value, dtype=dtype)
        out = gpu.empty(host.shape, host.dtype)
        gpu.copy("to device")
        out._host[...] = host
        return out

    def array(value: Any, dtype: Any = None, copy: bool = True) -> ndarray:
        if isinstance(value, ndarray):
            return value.copy() if dtype is None else value.astype(dtype)
        return asarray(value, dtype)

    def full(name: str, value: Any) -> Callable:
        def make(shape: Any, dtype: Any = np.float64) -> ndarray:
            out = gpu.empty(shape, dtype)
            host = out._host
            if out.size:
                gpu.run(name, lambda: host.fill(value))
            return out

        return make

    def like(make: Callable) -> Callable:
        return lambda a, dtype=None: make(a.shape, dtype=dtype or a.dtype)

    cupy.asarray, cupy.array, cupy.asnumpy = asarray, array, lambda a: a.get()
    cupy.empty, cupy.zeros, cupy.ones = gpu.empty, full("zeros", 0), full("ones", 1)
    cupy.empty_like, cupy.zeros_like, cupy.ones_like = like(cupy.empty), like(cupy.zeros), like(cupy.ones)
    cupy.full = lambda shape, value, dtype=np.float64: full("full", value)(shape, dtype)
    cupy.arange = lambda *a, dtype=np.int64: gpu.compute("arange", lambda: np.arange(*a, dtype=dtype))
    cupy.ascontiguousarray = lambda a: a if a.flags.c_contiguous else gpu.compute("copy", np.ascontiguousarray, a)
    cupy.broadcast_to = lambda a, shape: a._view(np.broadcast_to(a._host, shape))
    cupy.split = lambda a, ends, axis=0: [a._view(part) for part in np.split(a._host, ends, axis=axis)]
    cupy.concatenate = lambda arrays, axis=0: gpu.compute(
        "concatenate", lambda *hosts: np.concatenate(hosts, axis=axis), *arrays
    )
    cupy.RawModule = lambda code, options=(): SimpleNamespace(get_function=lambda name: _kernel(gpu, code, name))
    cupy.get_default_memory_pool = lambda: gpu.default_pool
    cupy.cuda = _cuda(gpu)
    return cupy


def _hosts(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_hosts, value))
    return value._host if isinstance(value, ndarray) else value


def _kernel(gpu: Gpu, code: str, name: str) -> Callable:
    call = compiler.function(code, name, gpu.reverse)

    def launch(grid: tuple, block: tuple, arguments: tuple) -> None:
        values = [a.data.ptr if isinstance(a, ndarray) else getattr(a, "item", lambda a=a: a)() for a in arguments]
        gpu.run(name, lambda: call(grid, block, values))

    return launch


def _cuda(gpu: Gpu) -> SimpleNamespace:
    @contextmanager
    def using_allocator(allocator: Callable) -> Iterator[None]:
        previous, gpu.allocate = gpu.allocate, allocator
        try:
            yield
        finally:
            gpu.allocate = previous

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (gpu.memory_bytes - gpu.used_bytes, gpu.memory_bytes),
        getDeviceProperties=lambda device: {"name": b"simulated GPU"},
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        deviceSynchronize=lambda: gpu.synchronise("deviceSynchronize()"),
    )
    return SimpleNamespace(
        runtime=runtime,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        MemoryPool=gpu.pool_class,
        Memory=gpu.memory_class,
        MemoryPointer=MemoryPointer,
        using_allocator=using_allocator,
        Stream=type("Stream", (Stream,), {"gpu": gpu, "null": gpu.null_stream}),
        get_current_stream=lambda: gpu.current_stream,
        Event=type("Event", (Event,), {"gpu": gpu}),
        get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
        Device=lambda *_: SimpleNamespace(
            id=0, compute_capability="{}{}".format(*gpu.capability), synchronize=runtime.deviceSynchronize
        ),
    )
