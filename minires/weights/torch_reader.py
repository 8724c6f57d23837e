"""PyTorch's checkpoints, without PyTorch.

`torch.save` pickles a dict of tensors, and keeps the numbers outside of the pickle, in "storages": flat vectors. A
tensor in the pickle is a call of torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...), and the storage
a persistent id ("storage", torch.FloatStorage, key, "cpu", number of elements). There are two ways to lay that out:

    zip, since PyTorch 1.6     NAME/data.pkl        the pickle
                               NAME/data/KEY        the numbers of a storage; not compressed, at a multiple of 64 bytes
                               NAME/byteorder       "little" or "big"
    the older one              a pickle of a magic number, one of a protocol version, one of machine properties,
                               the pickle of the tensors, a pickle with the list of keys,
                               and for each key 8 bytes with the number of elements, and the numbers

Reading goes in two steps. minires/files/pickles.py reads the pickle and builds a description: nothing but names, sizes
and strides. Then the arrays are made, as views of the mapped file.

Reading order: after archive.py and files/pickles.py. Next: torch_writer.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.files import pickles
from minires.files.pickles import PickleError, Window
from minires.weights.archive import Archive
from minires.weights.mapped import BFLOAT16, Order, WeightsError, check_shape, item_bytes, vector

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001

OF_TRAINING = re.compile(r"(^|_)(optim|optimizer|sched|scheduler|scaler)s?(_|$)")
MOST_LEVELS = 4  # of dicts in dicts, in which weights are looked for
# Where checkpoints of training runs usually keep the state dict, beside the epoch and the optimiser.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights")

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
DTYPES = (*STORAGES.values(), "uint16", "uint32", "uint64")


class DType(NamedTuple):
    """torch.float32 and its like, and the type of a storage. None: plain bytes, whose type comes with the tensor."""

    dtype: str | None


class Storage(NamedTuple):
    """`length` elements of the storage `key` from `start` on; the whole storage has `count`."""

    key: str
    dtype: str | None
    count: int
    start: int
    length: int


class Tensor(NamedTuple):
    """A description: element [i, j, ...] is number offset + i * stride[0] + j * stride[1] + ... of the storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


class OrderedDict(dict):
    """What a state dict is; the versions of its modules, which PyTorch sets as an attribute, do not matter here."""

    def pickle_state(self, state: Any) -> None:
        """Nothing to do."""


def read_zip(path: Path, archive: Archive, key: str | None, log: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint in the zip layout, or of the dict under `key` in it. Raises `WeightsError`."""
    folder = archive.one_ending_with("data.pkl").removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.members:
        raise WeightsError(f"{path}: is a TorchScript program, expected a state dict (of torch.save)")
    start, size = archive.place(f"{folder}data.pkl")
    window = Window(archive.buffer, _budget(archive.buffer), start, start + size)
    order = "<"
    if f"{folder}byteorder" in archive.members:
        at, length = archive.place(f"{folder}byteorder")
        order = ">" if bytes(archive.buffer[at : at + min(length, 3)]) == b"big" else "<"

    def locate(storage: Storage, dtype: str) -> int:
        offset, found = archive.place(f"{folder}data/{storage.key}")
        _check_bytes(path, storage, dtype, found)
        return offset

    content = _unpickle(path, window)
    return _arrays(path, archive.buffer, content, locate, order, key, log)


def read_legacy(path: Path, buffer: memoryview, key: str | None, log: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint in the older layout, or of the dict under `key` in it. Raises `WeightsError`."""
    window = Window(buffer, _budget(buffer))
    if _unpickle(path, window) != MAGIC:
        raise WeightsError(f"{path}: is a pickle, but not one of torch.save")
    version, system = _unpickle(path, window), _unpickle(path, window)
    if version != VERSION or not isinstance(system, dict):
        raise WeightsError(f"{path}: a checkpoint of another version than {VERSION}, which all have, or damaged")
    order = ">" if system.get("little_endian") is False else "<"
    storages: dict[str, tuple[str, int]] = {}
    content = _unpickle(path, window, storages)
    keys = _unpickle(path, window)
    if not isinstance(keys, list) or any(type(key) is not str or key not in storages for key in keys):
        raise WeightsError(f"{path}: its list of storages names some that no tensor has")

    offsets, position = {}, window.position
    for name in keys:
        dtype, expected = storages[name]
        found = int.from_bytes(buffer[position : position + 8], "little" if order == "<" else "big")
        position += 8
        if found != expected:
            raise WeightsError(f"{path}: storage {name} has {found:,} elements, its tensors expect {expected:,}")
        left = max(len(buffer) - position, 0)
        if found * item_bytes(dtype) > left:
            raise WeightsError(
                f"{path}: is truncated: storage {name} has {found * item_bytes(dtype):,} bytes, {left:,} are left"
            )
        offsets[name] = position
        position += found * item_bytes(dtype)

    def locate(storage: Storage, dtype: str) -> int:
        if storage.key not in offsets:
            raise WeightsError(f"{path}: storage {storage.key} is missing")
        return offsets[storage.key]

    return _arrays(path, buffer, content, locate, order, key, log)


def _check_bytes(path: Path, storage: Storage, dtype: str, found: int) -> None:
    # The number of elements of an untyped storage is that of its bytes.
    expected = storage.count * (item_bytes(dtype) if storage.dtype is not None else 1)
    if found != expected:
        raise WeightsError(f"{path}: storage {storage.key} has {found:,} bytes, its tensors expect {expected:,}")


def _budget(buffer: memoryview) -> int:
    """Bytes that the descriptions in a file may take: of 7,000 tensors, ResNet-1202's need half of their file."""
    return max(len(buffer) // 2, 16 << 20)


def _unpickle(path: Path, window: Window, storages: dict[str, tuple[str, int]] | None = None) -> Any:
    """The value of one pickle; in the older layout `storages` collects what it refers to: type and number by key."""

    def persistent(reference: Any) -> Storage:
        storage = _storage(reference)
        if storages is not None:
            if storage.dtype is None:
                raise PickleError("has a storage without a type")
            described = storage.dtype, storage.count
            if storages.setdefault(storage.key, described) != described:
                raise PickleError(f"describes storage {storage.key} in two ways")
        return storage

    try:
        return pickles.load(window, NAMES, persistent)
    except PickleError as error:
        raise WeightsError(f"{path}: the pickle {error}") from None


def _storage(reference: Any) -> Storage:
    """From a persistent id. Older files have a sixth part: None, or a view (its key, start, length)."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise PickleError("refers to something else than a storage")
    _, kind, key, _, count = reference[:5]
    view = reference[5] if len(reference) == 6 else None
    if not isinstance(kind, DType) or type(key) is not str or not _is_size(count):
        raise PickleError("describes a storage by something else than its type, key and number of elements")
    start, length = 0, count
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not _is_size(view[1]) or not _is_size(view[2]):
            raise PickleError("describes a part of a storage by something else than its start and length")
        start, length = view[1], view[2]
        if start + length > count:
            raise PickleError(f"has a part of storage {key:.50} that ends behind the storage")
    return Storage(key, kind.dtype, count, start, length)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


# What a state dict's pickle may call. The arguments that say nothing about the numbers are ignored.


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise PickleError("builds a tensor from something else than a typed storage")
    return _tensor(storage, offset, size, stride, storage.dtype)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, DType) or dtype.dtype is None:
        raise PickleError("builds a tensor from something else than a storage and a type")
    return _tensor(storage, offset, size, stride, dtype.dtype)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise PickleError("builds a parameter from something else than a tensor")
    return tensor


def _tensor(storage: Storage, offset: Any, size: Any, stride: Any, dtype: str) -> Tensor:
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride) or len(size) > 32:
        raise PickleError("builds a tensor whose sizes and strides are not two tuples of one length")
    if not all(map(_is_size, (offset, *size, *stride))):
        raise PickleError("builds a tensor with sizes, strides or an offset that are not whole numbers of at least 0")
    return Tensor(storage, offset, size, stride, dtype)


NAMES = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): lambda sizes=(): tuple(sizes) if isinstance(sizes, tuple) else (),
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "UntypedStorage"): DType(None),
    **{("torch", name): DType(dtype) for name, dtype in STORAGES.items()},
    **{("torch", dtype): DType(dtype) for dtype in DTYPES},
}


def _arrays(
    path: Path,
    buffer: memoryview,
    content: Any,
    locate: Callable[[Storage, str], int],
    order: Order,
    key: str | None,
    log: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """The arrays that `content` describes; those that share a storage there share it here."""
    loaded: dict[str, tuple[str, np.ndarray]] = {}
    arrays = {}
    for name, tensor in select(path, content, key, log).items():
        storage, dtype = tensor.storage, tensor.dtype
        if storage.key not in loaded:
            count = storage.count
            if storage.dtype is None:
                count //= item_bytes(dtype)
            loaded[storage.key] = dtype, vector(buffer, locate(storage, dtype), count, dtype, order)
        first, numbers = loaded[storage.key]
        if first != dtype:
            raise WeightsError(
                f"{path}: {name} takes storage {storage.key:.50} for {dtype}, another tensor for {first}"
            )
        arrays[name] = _view(path, name, tensor, numbers, len(buffer))
    return arrays


def _view(path: Path, name: str, tensor: Tensor, numbers: np.ndarray, file_bytes: int) -> np.ndarray:
    count = check_shape(tensor.size, f"{path}: {name}")
    start, end = tensor.storage.start, tensor.storage.start + tensor.storage.length
    first = start + tensor.offset
    last = first + sum((n - 1) * stride for n, stride in zip(tensor.size, tensor.stride)) if count else first - 1
    if last >= min(end, len(numbers)) or first > len(numbers):
        raise WeightsError(
            f"{path}: {name} reaches to element {last + 1:,} of {min(end, len(numbers)):,} in its storage"
        )
    # With strides of 0 a few numbers can claim to be a large array; as a view that is free, but its first copy is not.
    if count * item_bytes(tensor.dtype) > max(file_bytes, 1 << 20):
        raise WeightsError(f"{path}: {name} has the shape {tensor.size}, more elements than its file can hold")
    strides = tuple(numbers.itemsize * stride if n > 1 else 0 for n, stride in zip(tensor.size, tensor.stride))
    if _is_contiguous(tensor.size, tensor.stride):
        return numbers[first : first + count].reshape(tensor.size)
    return np.lib.stride_tricks.as_strided(numbers[first:], tensor.size, strides)


def _is_contiguous(size: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for n, step in zip(reversed(size), reversed(stride)):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def select(path: Path, content: Any, key: str | None, log: Callable[[str], None]) -> dict[str, Tensor]:
    """The state dict in what was unpickled: `content` itself, or a dict inside.

    `key` says which dict. With None it is the only one that holds tensors; of several, the only one with a usual name
    (WRAPPERS), or else `content` itself if none holds more tensors. `log` is told. Raises `WeightsError`, with the
    candidates, for anything else.
    """
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {_kind(content)}, expected a state dict: names and tensors")
    found = _dicts_of_tensors(content, key)
    listed = ", ".join(f"{name!r:.80} ({_tensors(inside)} tensors)" for name, inside in list(found.items())[:8] if name)
    if key is not None:
        if key not in found:
            raise WeightsError(f"{path}: has no tensors under {key!r}, only under: {listed or '(no key)'}")
        chosen = key
    elif not found:
        kinds = ", ".join(f"{name!r:.50} ({_kind(value)})" for name, value in list(content.items())[:8])
        raise WeightsError(f"{path}: has no tensors, only {kinds or 'an empty dict'}")
    else:
        usual = [name for name in found if name and set(name.split(".")) <= set(WRAPPERS)]
        most = max(map(_tensors, found.values()))
        likely = [*found] if len(found) == 1 else usual or [n for n in found if n == "" and _tensors(found[n]) == most]
        if len(likely) != 1:
            raise WeightsError(f"{path}: has tensors under several keys: {listed}; say key=... to load_weights")
        (chosen,) = likely
    if chosen:
        others = _names([name for name in content if name != chosen and not chosen.startswith(f"{name}.")])
        log(f"{path}: taking the weights under {chosen!r}" + (f"; not read: {others}" if others else ""))
    state = {name: value for name, value in found[chosen].items() if isinstance(value, Tensor)}
    if rest := [name for name in found[chosen] if name not in state]:
        log(f"{path}: left out, because they are no tensors: {_names(rest)}")
    if any(type(name) is not str for name in state):
        raise WeightsError(f"{path}: has tensors whose names are not text")
    return state


def _dicts_of_tensors(content: dict, key: str | None) -> dict[str, dict]:
    """The dicts in `content` that hold weights, by the path of their keys: "" for `content`, "model.state_dict", ...

    A dict of single numbers is none, such as {"best_acc1": ...}. What an optimiser keeps is none: under numbers, or a
    name such as "optimizer_state", unless that is the `key`.
    """
    found, single, seen, waiting = {}, {}, {id(content)}, [("", content)]
    while waiting:
        path, inside = waiting.pop(0)
        tensors = [value for value in inside.values() if isinstance(value, Tensor)]
        if any(tensor.size for tensor in tensors):
            found[path] = inside
        elif tensors:
            single[path] = inside
        for name, value in inside.items():
            of_training = type(name) is not str or (key is None and OF_TRAINING.search(name))
            if isinstance(value, dict) and not of_training and id(value) not in seen and path.count(".") < MOST_LEVELS:
                seen.add(id(value))  # a pickle can hold a dict that holds itself
                waiting.append((f"{path}.{name}" if path else name, value))
    return found or single


def _tensors(inside: dict) -> int:
    return sum(isinstance(value, Tensor) for value in inside.values())


def _names(names: list[Any]) -> str:
    """The first eight of them."""
    return ", ".join(f"{name!r:.50}" for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, Tensor) else "dict" if isinstance(value, dict) else type(value).__name__
