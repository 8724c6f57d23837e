"""Compiling the .cu files and launching their kernels, with every argument checked first.

A wrong pointer or size in a CUDA launch does not raise: it reads other people's memory. So a kernel's declaration in
its .cu file is read here too, and says in a comment behind each pointer how large the array has to be:

    extern "C" __global__ void relu_backward(
        const activation* __restrict__ dy,  // [size]
        const activation* __restrict__ y,   // [size]
        activation* __restrict__ dx,        // [size], aligned
        long long size) {

    program("elementwise", ACTIVATION="float")["relu_backward"](grid, block, dy=dy, y=y, dx=dx, size=dy.size)

Arguments are given by name. A pointer takes a contiguous array on the GPU of the declared type and number of elements
(any shape), or None where the comment says `or null`; `aligned` asks for an address that suits an access of VECTOR
elements, `aligned to 16` for one that is a multiple of 16 bytes. Numbers are converted to the declared type: left to
itself CuPy would pass a Python float as a double, and an int as 64 bits.

Reading order: first in cuda. Next: common.cuh, sums.cu and sums.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from minires.device import Array, device_of, module_of

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17",)
MAX_THREADS = 1024  # in a block
THREADS = 256  # in a block, unless a kernel needs another number
BLOCKS = 264  # enough to fill a large GPU (132 multiprocessors in an H100 or H200) twice

# The kernels multiply sizes as ints, and addresses as size_t: a batch may have 2^31 positions (512 images of 224x224
# are 26 million), and an image 2^31 numbers.
SCALARS = {"float": np.float32, "int": np.int32, "long long": np.int64}
POINTERS = {"float": "float32", "int": "int32", "long long": "int64", "unsigned char": "uint8", "bool": "bool",
            "unsigned": "uint32", "bfloat16": "bfloat16"}  # fmt: skip


class Parameter(NamedTuple):
    """One parameter of a kernel; `shape` is the number of elements behind a pointer, as code, None for a number."""

    name: str
    type: str
    shape: CodeType | None
    text: str  # the shape as written
    optional: bool
    aligned: int | None  # to so many bytes; 0 for VECTOR elements


@cache
def source(file: str, defines: tuple[tuple[str, str], ...] = ()) -> str:
    """The text to compile: the definitions, and the file with what it includes (CuPy's cache sees only this text)."""
    text = _with_includes(FOLDER / f"{file}.cu")
    return "".join(f"#define {name} {value}\n" for name, value in defines) + text


def _with_includes(path: Path) -> str:
    def included(match: re.Match) -> str:
        return _with_includes(path.parent / match[1])

    return re.sub(r'^#include "(\w+\.cuh)"$', included, path.read_text(), flags=re.MULTILINE)


def parse(text: str) -> dict[str, list[Parameter]]:
    """The parameters of every kernel declared in `text`. Raises `ValueError` for a pointer without its size."""
    pattern = r'extern "C" __global__ void(?: __launch_bounds__\([\w, ]+\))? (\w+)\((.*?)\) \{'
    return {name: _parameters(name, body) for name, body in re.findall(pattern, text, flags=re.DOTALL)}


def _parameters(kernel: str, body: str) -> list[Parameter]:
    pattern = r"^\s*(?:const )?([\w ]+?)(\*?)(?: __restrict__)? (\w+),?[ ]*(?://[ ]*(.*))?$"
    parameters = []
    for line in body.strip().splitlines():
        match = re.match(pattern, line)
        if match is None:
            raise ValueError(f"{kernel}: cannot read the declaration {line.strip()!r}")
        kind, pointer, name, comment = match[1], match[2], match[3], match[4] or ""
        shape = re.match(r"\[(.*?)\]", comment)
        if pointer and not shape:
            raise ValueError(f"{kernel}: {name} is a pointer and has no comment that gives its shape, like // [size]")
        if not pointer and kind not in SCALARS:
            raise ValueError(f"{kernel}: {name} has type {kind}, expected one of {', '.join(SCALARS)}")
        if shape and pointer:
            size, text = compile(" * ".join(f"({part})" for part in shape[1].split(",")), name, "eval"), shape[0]
        else:
            size, text = None, ""
        aligned = re.search(r"aligned(?: to (\d+))?", comment)
        alignment = int(aligned[1] or 0) if aligned else None
        parameters.append(Parameter(name, kind, size, text, "or null" in comment, alignment))
    return parameters


@cache
def program(file: str, **defines: str | int) -> Mapping[str, Kernel]:
    """The kernels of `file`.cu, compiled with these definitions (ACTIVATION="float", VECTOR=4, ...)."""
    import cupy

    defines = {"ACTIVATION": "float", "VECTOR": 1, **defines}
    text = source(file, tuple(sorted((name, str(value)) for name, value in defines.items())))
    module = cupy.RawModule(code=text, options=OPTIONS)
    vector = int(defines["VECTOR"])
    return {
        name: Kernel(name, parameters, module, str(defines["ACTIVATION"]), vector)
        for name, parameters in parse(text).items()
    }


class Kernel:
    """A kernel that checks its arguments. It is compiled when it is first launched."""

    def __init__(self, name: str, parameters: list[Parameter], module: Any, activation: str, vector: int):
        self.name, self.parameters, self.vector = name, parameters, vector
        self._types = {p.name: np.dtype(POINTERS[activation if p.type == "activation" else p.type])
                       for p in parameters if p.shape is not None}  # fmt: skip
        self._module = module
        self._function: Any = None

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], **arguments: Array | float | None) -> None:
        """Launch on the current stream: `grid` blocks of `block` threads, both (x, y, z) or shorter.

        Raises `TypeError` or `ValueError`, naming kernel and argument, for anything that does not fit the declaration.
        """
        if not 0 < prod(block) <= MAX_THREADS:
            raise ValueError(f"{self.name}: blocks of {block} threads, expected 1 to {MAX_THREADS}")
        if any(n < 1 for n in grid) or any(n > 65535 for n in grid[1:]) or grid[0] >= 2**31:
            raise ValueError(f"{self.name}: a grid of {grid} blocks, expected at least 1 and at most 65535 in y and z")
        missing = [p.name for p in self.parameters if p.name not in arguments]
        if missing or len(arguments) != len(self.parameters):
            names = sorted({p.name for p in self.parameters} ^ set(arguments))
            raise TypeError(f"{self.name}: arguments {names} are missing or not known")
        numbers = {p.name: self._number(p, arguments) for p in self.parameters if p.shape is None}
        sizes = {name: value.item() for name, value in numbers.items()}
        values = [
            numbers[p.name] if p.shape is None else self._array(p, p.shape, arguments[p.name], sizes)
            for p in self.parameters
        ]
        if self._function is None:
            self._function = self._module.get_function(self.name)
        self._function(grid, block, tuple(values))

    def _number(self, p: Parameter, arguments: Mapping) -> np.generic:
        value = arguments[p.name]
        try:
            if isinstance(value, float) and p.type != "float":
                raise TypeError("a float for an integer")  # NumPy would cut off its fraction
            return SCALARS[p.type](value)  # OverflowError for an int that does not fit
        except (TypeError, OverflowError) as error:
            raise TypeError(f"{self.name}: {p.name} is {value!r}, expected a number of type {p.type}") from error

    def _array(self, p: Parameter, shape: CodeType, array: Array | None, sizes: Mapping[str, float]) -> Array | int:
        if array is None:
            if p.optional:
                return 0  # the null pointer, passed as a 64-bit integer
            raise TypeError(f"{self.name}: {p.name} is None, expected an array of {p.text}")
        if not hasattr(array, "dtype") or device_of(array) != "cuda":
            raise TypeError(
                f"{self.name}: {p.name} is a {type(array).__name__} on the host, expected an array on the GPU"
            )
        if array.dtype != self._types[p.name]:
            raise TypeError(f"{self.name}: {p.name} has dtype {array.dtype}, the kernel takes {self._types[p.name]}")
        size = eval(shape, {}, sizes)
        if array.size != size:
            raise ValueError(
                f"{self.name}: {p.name} has shape {array.shape}, the kernel takes {size} elements: {p.text}"
            )
        if not array.flags.c_contiguous:
            raise ValueError(f"{self.name}: {p.name} of shape {array.shape} is not contiguous")
        if p.aligned is not None and array.data.ptr % (bytes := p.aligned or self.vector * array.itemsize):
            raise ValueError(f"{self.name}: {p.name} is at an address that is no multiple of {bytes}")
        return array


def vector_width(channels: int, *arrays: Array | None) -> int:
    """4 where a thread can take four neighbouring channels in one access, else 1."""
    fits = channels % 4 == 0 and all(a is None or a.data.ptr % (4 * a.itemsize) == 0 for a in arrays)
    return 4 if fits else 1


def activation_of(array: Array) -> str:
    """The C type of an array of activations: `float` or `bfloat16`. Raises `TypeError` for anything else."""
    name = array.dtype.name
    if name not in ("float32", "bfloat16"):
        raise TypeError(f"the CUDA kernels take float32 and bfloat16 activations, got {name}")
    return "float" if name == "float32" else name


def blocks(work: int, per_block: int = THREADS, most: int = 8 * BLOCKS) -> int:
    """Blocks for `work` items when each block takes `per_block` at a time, and goes on where there are more."""
    return max(1, min(-(-work // per_block), most))


def channel_grid(rows: int, channels: int, vector: int, most: int = BLOCKS) -> tuple[tuple[int, int], tuple[int, int]]:
    """(grid, block) for kernels in which a thread stays with `vector` channels and walks down the rows.

    The block's width is a power of 2, at most a warp; the grid's height is the number of parts the rows are cut into:
    as many as fill the GPU (`most` blocks), but no fewer than 8 rows for a thread.
    """
    groups = -(-channels // vector)
    width = min(32, 1 << (groups - 1).bit_length())  # threads for the channels; the rest of the block are rows
    height, across = THREADS // width, -(-groups // width)
    parts = max(1, min(-(-rows // (8 * height)), most // across))
    return (across, parts), (width, height)


def int64(array: Array) -> Array:
    """Labels or positions as the kernels read them: int64, contiguous."""
    return module_of(array).ascontiguousarray(array.astype("int64", copy=False))
