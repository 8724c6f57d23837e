"""Reading pickles without running them.

A pickle is a program for a small stack machine. `pickle.load` lets this program call any function of any library:
opening a stranger's pickle means running a stranger's code. This file has a stack machine of its own. The machine knows
the instructions that build dicts, lists, tuples, numbers and strings, and calls only the functions in `names`:
stand-ins that store their arguments. Any other request ends in a `PickleError` that names the request.

The standard library decodes the instructions (`pickletools.genops`). PyTorch's `weights_only` loading uses such a
machine too.

Reading order: when weights/torch_reader.py or data/cifar.py, the two users, read a pickle.
"""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import Any

LONGEST_LINE = 4096  # bytes of a text argument that a newline ends: names of modules and classes
OPCODE_COST = 100  # bytes of memory an instruction can take beside its argument: an empty dict has 80
CALL_COST = 500  # ... of a call: its result

_MARK = object()


class PickleError(ValueError):
    """A pickle that is damaged, too large for its file, or asks for something that plain values do not need."""


class Window:
    """A file to read from, over the bytes of `buffer` from `position` to `end`.

    budget   bytes of memory that all values may take, estimated generously from the instructions
    longest  bytes of the longest string allowed
    """

    def __init__(
        self, buffer: memoryview, budget: int, position: int = 0, end: int | None = None, longest: int = 1 << 16
    ):
        self.buffer, self.budget, self.position, self.longest = buffer, budget, position, longest
        self.end = len(buffer) if end is None else end

    def spend(self, count: int) -> None:
        """Take `count` bytes from the budget."""
        self.budget -= count
        if self.budget < 0:
            raise PickleError("would take more memory than its file can account for: it may be an attack")

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Allocates no more than the bytes that are there."""
        if count > self.end - self.position and count > 1:  # one byte is an instruction: genops sees that it is missing
            raise PickleError(f"is truncated: {count:,} bytes are announced, {self.end - self.position:,} are left")
        if count > self.longest:
            raise PickleError(f"has a string of {count:,} bytes, expected at most {self.longest:,}")
        part = bytes(self.buffer[self.position : min(self.position + count, self.end)])
        self.position += len(part)
        return part

    def readline(self) -> bytes:
        """The bytes up to and with the next newline."""
        ahead = bytes(self.buffer[self.position : min(self.position + LONGEST_LINE, self.end)])
        length = ahead.find(b"\n") + 1
        if length == 0:
            raise PickleError("is truncated, or has a line of text that is too long")
        self.position += length
        return ahead[:length]


def load(
    window: Window,
    names: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
    python2_bytes: bool = False,
) -> Any:
    """The value of the pickle that begins at the window's position. The position moves to the pickle's end.

    names          what (module, name) stands for: a value, or a function that the pickle may call
    persistent     maps a persistent id, the pickle's reference to an outside object, to a value
    python2_bytes  read Python 2's strings, which may be either, as bytes, not text

    A pickle may set the state of an object whose class has a method `pickle_state`; the method gets the state.
    Raises `PickleError`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    reader: Any = window  # genops asks for a file, and uses its read, readline and tell
    try:
        for opcode, argument, _ in pickletools.genops(reader):
            window.spend(OPCODE_COST + sys.getsizeof(argument))
            if opcode.name == "STOP":
                (value,) = stack
                return value
            window.spend(_step(opcode.name, argument, stack, memo, names, persistent, python2_bytes))
    except PickleError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PickleError(f"is truncated or damaged ({reason[:200]})") from None
    raise PickleError("is truncated: it has no end")


def _step(
    name: str,
    argument: Any,
    stack: list[Any],
    memo: dict[int, Any],
    names: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None,
    python2_bytes: bool,
) -> int:
    """Run one instruction; return its extra cost. Covers everything that a pickle of plain values contains."""
    match name:
        case "PROTO" | "FRAME":
            pass
        case "INT" | "LONG" | "LONG1" | "BININT" | "BININT1" | "BININT2":
            if abs(argument) >= 1 << 128:
                raise PickleError("has an integer of more than 128 bits: it may be an attack")
            stack.append(argument)
        case "FLOAT" | "BINFLOAT" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
            stack.append(argument)
        case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
            stack.append(argument)
        case "STRING" | "BINSTRING" | "SHORT_BINSTRING":
            stack.append(argument.encode("latin1") if python2_bytes else argument)
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        case "MARK":
            stack.append(_MARK)
        case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            count = int(name[-1])
            stack.append(tuple(_pop(stack, count)))
        case "TUPLE" | "LIST":
            items = _pop_to_mark(stack)
            stack.append(tuple(items) if name == "TUPLE" else items)
        case "APPEND" | "APPENDS":
            items = _pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
            _expect(list, stack[-1]).extend(items)
        case "DICT" | "SETITEM" | "SETITEMS":
            items = _pop(stack, 2) if name == "SETITEM" else _pop_to_mark(stack)
            if name == "DICT":
                stack.append({})
            target = _expect(dict, stack[-1])
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Hashing a tuple nested 150,000 deep crashes the interpreter. Integers chosen to share a hash make a
                # dict slow.
                if isinstance(key, tuple) or (isinstance(key, int) and abs(key) >= 1 << 63):
                    raise PickleError(f"has a {type(key).__name__} as a key of a dict: it may be an attack")
                target[key] = value
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "GLOBAL" | "STACK_GLOBAL":
            if name == "GLOBAL":
                module, _, attribute = argument.partition(" ")
            else:
                attribute, module = _expect(str, stack.pop()), _expect(str, stack.pop())
            if (module, attribute) not in names:
                raise PickleError(f"asks for {module}.{attribute}, which it does not need: it may be an attack")
            stack.append(names[module, attribute])
        case "REDUCE":
            arguments, function = _expect(tuple, stack.pop()), stack.pop()
            if not callable(function):  # only values of `names` are callable
                raise PickleError(f"calls a {type(function).__name__}: it may be an attack")
            stack.append(function(*arguments))
            return CALL_COST
        case "BUILD":
            state, target = stack.pop(), stack[-1]
            if not hasattr(type(target), "pickle_state"):
                raise PickleError(f"changes the inside of a {type(target).__name__}: it may be an attack")
            target.pickle_state(state)
        case "BINPERSID" if persistent is not None:
            stack.append(persistent(stack.pop()))
            return CALL_COST
        case _:
            raise PickleError(f"has the instruction {name}, which plain values do not need: it may be an attack")
    return 0


def _pop(stack: list[Any], count: int) -> list[Any]:
    """Take the last `count` values from the stack."""
    items = stack[-count:]
    if len(items) < count or any(item is _MARK for item in items):
        raise PickleError("is damaged: its stack is too short")
    del stack[-count:]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    """Take the values above the last mark from the stack, and drop the mark."""
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is _MARK:
            items = stack[place + 1 :]
            del stack[place:]
            return items
    raise PickleError("is damaged: its stack has no mark")


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise PickleError(f"is damaged: it has a {type(value).__name__} in place of a {kind.__name__}")
    return value


# Stand-ins for NumPy's arrays, which only store their arguments. NumPy's own functions would allocate whatever size the
# file claims.


class DType:
    """The type of an array's numbers."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def pickle_state(self, state: Any) -> None:  # byte order and such: no matter for one-byte numbers
        pass


class Bytes:
    """Bytes written by Python 3 for Python 2: a call of `_codecs.encode(text, "latin1")`."""

    def __init__(self, text: str, encoding: str) -> None:
        if not isinstance(text, str):
            raise PickleError("encodes something else than text")
        self.text = text


class Array:
    """An array, pickled as `_reconstruct(ndarray, (0,), b"b")` followed by its state."""

    raw: bytes | bytearray | Bytes = b""
    dtype, shape, order = "empty", (), "C"

    def __init__(self, *_: Any) -> None:  # called with (ndarray, (0,), b"b"), which carry no information
        pass

    def pickle_state(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: bytes | bytearray | Bytes, dtype: DType, shape: tuple[int, ...], order: str) -> None:
        if not (
            isinstance(raw, (bytes, bytearray, Bytes))
            and isinstance(dtype, DType)
            and isinstance(dtype.name, str)
            and isinstance(shape, tuple)
            and all(type(n) is int for n in shape)
        ):
            raise PickleError("has an array of something else than plain numbers")
        self.raw, self.dtype, self.shape, self.order = raw, dtype.name.lstrip("|"), shape, order


class FromBuffer(Array):
    """An array in pickle protocol 5: `_frombuffer(raw, dtype, shape, order)`."""

    def __init__(self, raw: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> None:
        self.fill(raw, dtype, shape, order)


NUMPY: dict[tuple[str, str], Any] = {  # for `load`
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},  # NumPy 1 and 2
    **{(f"numpy.{core}.numeric", "_frombuffer"): FromBuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): DType,
    ("_codecs", "encode"): Bytes,
}
