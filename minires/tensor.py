"""The engine: a Tensor remembers the operation that made it, `backward` walks the tape in reverse.

An operation computes its output array, then calls `Tensor.from_op(output, inputs, backward)`, where
`backward` maps the gradient of the loss with respect to the output to the gradients with respect to
the inputs. That is the whole contract; all differentiable operations live in functional/, which also
attaches the operators (`+`, `@`, `.sum()`, ...) of functional/operators.py to Tensor: imports point one way.

Reading order: after device.py. Next: functional/arithmetic.py.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.device import Array, device_of, module_of, to_device

if TYPE_CHECKING:
    from minires.functional.operators import Operators  # editors and type checkers see the operators here
else:
    Operators = object

_order = itertools.count()  # nodes are numbered as they are made: an input's node is older than its output's


class _GradMode(threading.local):
    enabled = True


_grad_mode = _GradMode()


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside `with no_grad():` nothing is recorded, so nothing is kept for backward (in this thread)."""
    previous, _grad_mode.enabled = _grad_mode.enabled, False
    try:
        yield
    finally:
        _grad_mode.enabled = previous


def is_grad_enabled() -> bool:
    """False inside `no_grad`."""
    return _grad_mode.enabled


class Node:
    """One recorded operation: its inputs and the function from output gradient to input gradients.

    `parents` holds a leaf as its Tensor, and any other input as the Node that made the input. So the tape holds no
    output of an operation, unless a `backward` needs the output.
    """

    __slots__ = ("backward", "dtype", "name", "order", "parents", "shape")
    requires_grad = True

    def __init__(self, output: Array, parents: Sequence[Tensor], backward: Callable[[Array], Sequence[Array | None]]):
        self.order = next(_order)
        self.shape, self.dtype = output.shape, output.dtype
        self.parents: Sequence[Tensor | Node] = [(p.requires_grad and p.node) or p for p in parents]
        self.backward: Callable[[Array], Sequence[Array | None]] | None = backward
        self.name = backward.__qualname__.split(".<locals>.")[-2:][0]  # "conv2d.<locals>.backward" -> "conv2d"

    @property
    def node(self) -> Node:
        """Itself, so that `parent.node` works for a Tensor and for a Node."""
        return self

    def free(self) -> None:
        """Drop the inputs and all that the closure saved: their memory goes while backward still runs."""
        self.parents, self.backward = (), None


class Tensor(Operators):
    """An array with, optionally, a gradient.

    data           the numpy or cupy array
    requires_grad  whether backward computes a gradient for it
    grad           that gradient, an array of the same shape, once backward has run (leaves only)
    grad_buffer    where the first gradient is put, if an optimiser wants it in a certain place; else None
    node           the operation that made it; None for a leaf

    Floating-point Python numbers and lists become float32; arrays keep their dtype. Backward reads what forward has
    seen: an array may not be changed in place in between.
    Raises `TypeError` when `requires_grad` is asked of data that is not floating-point.
    """

    __slots__ = ("__weakref__", "data", "grad", "grad_buffer", "node", "requires_grad")
    __array_ufunc__ = None  # numpy_array + tensor: let Tensor.__radd__ handle it

    def __init__(self, data: Array | Tensor | float | list, requires_grad: bool = False):
        if isinstance(data, Tensor):
            data = data.data
        elif not hasattr(data, "dtype"):
            if _holds_tensors(data):
                raise TypeError("Tensor: data is a list of tensors, expected numbers; F.stack(tensors) joins tensors")
            data = np.asarray(data)
            data = data.astype(np.float32) if data.dtype == np.float64 else data
        self.data = module_of(data).asarray(data)
        if self.data.dtype.kind not in "fiub" and self.data.dtype.name != "bfloat16":
            raise TypeError(f"Tensor: data has dtype {self.data.dtype}, expected numbers")
        if not self.data.dtype.isnative:
            self.data = self.data.astype(self.data.dtype.newbyteorder("="))
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"Tensor: requires_grad needs floating-point data, got {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.grad_buffer: Array | None = None
        self.node: Node | None = None

    @classmethod
    def from_op(cls, data: Array, parents: Sequence[Tensor], backward: Callable) -> Tensor:
        """The output of an operation on `parents`; recorded only if a gradient will be wanted.

        `backward(dy)` gets the gradient for `data`, which it must not modify, and returns one gradient
        per parent, of the parent's shape, or None for a parent that does not require one.
        """
        for parent in parents:
            if not isinstance(parent, Tensor):
                name, kind = Node(Tensor(data).data, (), backward).name, type(parent).__name__
                raise TypeError(f"{name}: input is of type {kind}, expected a Tensor: wrap it, Tensor(x)")
        out = Tensor(data)
        if _grad_mode.enabled and any(parent.requires_grad for parent in parents):
            out.requires_grad = True
            out.node = Node(out.data, parents, backward)
        return out

    def backward(self, gradient: Array | Tensor | None = None) -> None:
        """Add d(self)/d(leaf) to `leaf.grad` for every leaf that requires a gradient.

        gradient   the gradient of the final quantity with respect to this tensor, of its shape;
                   may be left out for a scalar, where it is 1

        The graph is freed on the way: a second call raises `RuntimeError`.
        """
        xp = module_of(self.data)
        if not self.requires_grad:
            raise RuntimeError("backward: this tensor does not depend on any tensor with requires_grad=True")
        if gradient is None:
            if self.data.size != 1:
                raise RuntimeError(f"backward: give a gradient of shape {self.shape}; only a scalar has a default, 1")
            gradient = xp.ones_like(self.data)
        dy = xp.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, dtype=self.dtype)
        if dy.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {dy.shape}, the tensor has {self.shape}")
        if self.node is None:
            self.accumulate_grad(dy)
            return

        # Newest node first: every consumer of a value is newer than the node that made it, so a node is
        # reached only when its gradient is complete. A heap instead of recursion: depth costs nothing.
        pending = {self.node: dy}  # gradients not yet passed on
        owned: set[Node] = set()  # nodes whose pending gradient was allocated here, free to be added to
        heap = [(-self.node.order, self.node)]
        while heap:
            node = heapq.heappop(heap)[1]
            if node.backward is None:
                raise RuntimeError(
                    f"backward: the graph below {node.name!r} was freed by an earlier backward(); "
                    "run the forward computation again, or sum the losses before one backward()"
                )
            dy = pending.pop(node)
            owned.discard(node)
            for parent, dparent in zip(node.parents, _checked(node, node.backward(dy))):
                if dparent is None or not parent.requires_grad:
                    continue
                if dparent.shape != parent.shape:
                    raise RuntimeError(
                        f"{node.name}: its backward returned a gradient of shape {dparent.shape} for an input of "
                        f"shape {parent.shape}"
                    )
                if parent.dtype.kind == "f" and dparent.dtype.itemsize > parent.dtype.itemsize:
                    dparent = dparent.astype(parent.dtype)  # a float64 loss is no reason for float64 in the layers
                source = parent.node
                if source is None:
                    parent.accumulate_grad(dparent)  # pyright: ignore[reportAttributeAccessIssue] # a leaf is a Tensor
                elif source not in pending:
                    pending[source] = dparent  # perhaps shared (x + y hands one array to both): not to be written to
                    heapq.heappush(heap, (-source.order, source))
                elif source not in owned:
                    pending[source] = pending[source] + dparent
                    owned.add(source)
                else:
                    pending[source] += dparent
            node.free()
            gradient = dy = dparent = parent = None  # or they would keep a large array alive during the next node

    def accumulate_grad(self, gradient: Array) -> None:
        """Add to `grad`. The first gradient is copied, into `grad_buffer` if there is one: no two leaves may share an
        array. An operation may also have written the gradient into `free_grad_buffer`."""
        if self.grad is not None:
            self.grad += gradient
        elif self.grad_buffer is None:
            self.grad = module_of(gradient).array(gradient)
        else:
            if gradient is not self.grad_buffer:
                self.grad_buffer[...] = gradient
            self.grad = self.grad_buffer

    @property
    def free_grad_buffer(self) -> Array | None:
        """`grad_buffer` while it holds no gradient: an operation may put its gradient straight into it."""
        return self.grad_buffer if self.grad is None else None

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self.data.dtype

    @property
    def device(self) -> str:
        """`"cpu"` or `"cuda"`."""
        return device_of(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array (shared with the tensor on the CPU, copied from the GPU)."""
        return to_device(self.data, "cpu")

    def item(self) -> float:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """A tensor on the same data that the tape does not know: no gradient flows through it."""
        return Tensor(self.data)

    def to(self, device: str) -> Tensor:
        """This tensor on `"cpu"` or `"cuda"`; gradients flow back through the move."""
        source = self.device
        if device == source:
            return self

        def backward(dy: Array) -> tuple[Array]:
            return (to_device(dy, source),)

        return Tensor.from_op(to_device(self.data, device), (self,), backward)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a scalar tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise TypeError(f"the truth of a tensor of shape {self.shape} is ambiguous; only one element has one")
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The numbers for NumPy, Pillow and matplotlib; copied from the GPU. No gradient flows through them."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        made_by = f", made by {self.node.name}" if self.node else ""
        return f"Tensor({self.data}, shape={self.shape}, dtype={self.dtype}, device={self.device!r}{grad}{made_by})"


def _checked(node: Node, gradients: Sequence[Array | None]) -> Sequence[Array | None]:
    """What the `backward` of `node` returned: one array or None per input. Raises `RuntimeError` for anything else."""
    found = None
    if not isinstance(gradients, (tuple, list)):
        kind = "None" if gradients is None else f"a single {type(gradients).__name__}"
        found = f"{kind}, expected a tuple, one gradient per input: (dx,)"
    elif len(gradients) != len(node.parents):
        found = f"{len(gradients)} gradients for {len(node.parents)} inputs"
    else:
        for gradient in gradients:
            if gradient is not None and (isinstance(gradient, Tensor) or not hasattr(gradient, "dtype")):
                found = f"a gradient of type {type(gradient).__name__}, expected an array"
    if found:
        raise RuntimeError(f"backward of {node.name} returned {found}")
    return gradients


def _holds_tensors(data: Any) -> bool:
    """Whether `data` is a Tensor, or a list with one in it, at any depth."""
    return any(map(_holds_tensors, data)) if isinstance(data, (list, tuple)) else isinstance(data, Tensor)
