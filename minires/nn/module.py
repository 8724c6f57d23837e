"""Module: a piece of a network, holding parameters, buffers and other modules.

Nothing has to be registered. The parameters are the attributes of type Parameter; the sub-modules are the attributes of
type Module, in the order of their first assignment. (A list of modules is no Module; nn.ModuleList is one.) Attribute
names make the names ("layer1.0.conv1.weight") that state_dict shares with PyTorch.

Reading order: after functional/pooling.py. Next: init.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np

from minires.device import Array, check_device, module_of, to_device
from minires.nn import advice
from minires.tensor import Tensor

M = TypeVar("M", bound="Module")  # the class of a module that a method returns


class Parameter(Tensor):
    """A Tensor that is trained: an attribute of this type belongs to its module's state."""

    __slots__ = ()

    def __init__(self, data: Array):
        super().__init__(data, requires_grad=True)


class Module:
    """Base class of all layers and networks: write `forward`, call the module itself.

        class Scale(nn.Module):
            def __init__(self, features):
                super().__init__()
                self.weight = nn.Parameter(np.ones(features, np.float32))

            def forward(self, x):
                return x * self.weight

    buffer_names  arrays that belong to the state but are not trained (running statistics)
    torch_axes    for each parameter with another layout in PyTorch, the axes of the transposition to that layout
    """

    buffer_names: ClassVar[tuple[str, ...]] = ()
    torch_axes: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    _observers: ClassVar[tuple[Callable[[Module, tuple, Any], None], ...]] = ()

    def __init__(self) -> None:
        self.training = True

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(vars(self).get(name), Parameter) and not (value is None or isinstance(value, Parameter)):
            raise TypeError(
                f"{name} is a Parameter, a {type(value).__name__} is not trained: assign nn.Parameter(array)"
            )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation. Every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            output = self.forward(*args, **kwargs)
        except (TypeError, ValueError) as error:
            advice.name_layer(self, error)
            raise
        for observer in Module._observers:
            observer(self, args, output)
        return output

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The sub-modules directly below this one."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (named "") and all below it, parents first, as (dotted name, module)."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters, as (dotted name, parameter), each once even if used twice, as in PyTorch."""
        seen = set()
        for name, module, attribute in self._named_state():
            value = getattr(module, attribute)
            if isinstance(value, Parameter) and value not in seen:
                seen.add(value)
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """All parameters. Warns of those in a list of Python, which nobody finds."""
        advice.warn_of_lists(self, (Module, Parameter))
        return (parameter for _, parameter in self.named_parameters())

    def _named_state(self) -> Iterator[tuple[str, Module, str]]:
        """(dotted name, module, attribute) of every parameter and buffer, in PyTorch's order."""
        for prefix, module in self.named_modules():
            parameters = [name for name, value in vars(module).items() if isinstance(value, Parameter)]
            for attribute in [*parameters, *module.buffer_names]:
                yield f"{prefix}.{attribute}" if prefix else attribute, module, attribute

    def state_dict(self) -> dict[str, np.ndarray]:
        """{name: array} of all parameters and buffers: copies on the CPU, in PyTorch's names and layouts."""
        state = {}
        for name, module, attribute in self._named_state():
            value = getattr(module, attribute)
            array = value.numpy() if isinstance(value, Parameter) else to_device(value, "cpu")
            if attribute in module.torch_axes:
                array = array.transpose(module.torch_axes[attribute])
            state[name] = np.array(array, order="C")
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy `state`, in PyTorch's names and layouts, into this module's parameters and buffers.

        Raises `ValueError` listing every missing, unexpected and misshapen key, or for an array that holds no numbers,
        and changes nothing then. strict=False ignores missing and unexpected keys; misshapen ones still raise. A state
        from before PyTorch 0.4.1 has no `num_batches_tracked`: as in PyTorch, they are not missing and become 0.
        """
        own = {name: _torch_shape(module, attribute) for name, module, attribute in self._named_state()}
        counters = {name for name in own if name.rpartition(".")[2] == "num_batches_tracked"}
        if strict and not any(name.rpartition(".")[2] == "num_batches_tracked" for name in state):
            state = {**state, **dict.fromkeys(counters, 0)}
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        misshapen = [
            f"{name} has shape {np.shape(state[name])}, expected {own[name]}"
            for name in own
            if name in state and np.shape(state[name]) != own[name]
        ]
        problems = {"misshapen": misshapen} if not strict else {}
        if strict:
            problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
        if any(problems.values()):
            found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
            raise ValueError(f"load_state_dict: the state does not fit {type(self).__name__}. {found}")
        arrays = []  # all is converted before anything is changed
        for name, module, attribute in self._named_state():
            if name not in state:
                continue
            target = getattr(module, attribute)
            target = target.data if isinstance(target, Parameter) else target
            try:
                if not hasattr(target, "dtype"):
                    raise TypeError(f"the buffer is of type {type(target).__name__}, expected an array")
                array = np.asarray(state[name])
                if attribute in module.torch_axes:
                    array = array.transpose(np.argsort(module.torch_axes[attribute]))
                with np.errstate(invalid="ignore"):
                    converted = array.astype(target.dtype)
                if target.dtype.kind in "iu" and not (converted == array).all():
                    raise ValueError(f"expected whole numbers that fit into {target.dtype}")
                arrays.append((target, module_of(target).asarray(converted)))
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"load_state_dict: {name}: {error}") from error
        for target, array in arrays:
            target[...] = array  # in place: optimisers hold views

    def train(self: M, mode: bool = True) -> M:
        """Training mode for this module and all below: batch norm uses batch statistics, dropout drops."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Evaluation mode: batch norm uses running statistics, dropout does nothing."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside `with model.evaluating():`; leaving restores the mode of every module."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def to(self: M, device: str) -> M:
        """Move all parameters and buffers to `"cpu"` or `"cuda"`. Create optimisers afterwards: they hold views."""
        check_device(device)
        for _, module, attribute in self._named_state():
            value = getattr(module, attribute)
            if isinstance(value, Parameter):
                if value.device != device:
                    value.data, value.grad, value.grad_buffer = to_device(value.data, device), None, None
            else:
                setattr(module, attribute, to_device(value, device))
        return self

    def requires_grad_(self: M, flag: bool = True) -> M:
        """Train (True) or freeze (False) all parameters of this module."""
        for _, parameter in self.named_parameters():
            parameter.requires_grad = flag
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for _, parameter in self.named_parameters():
            parameter.zero_grad()

    def __repr__(self) -> str:
        lines = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()]
        inside = "\n  " + "\n  ".join(lines) + "\n" if lines else self.extra_repr()
        return f"{type(self).__name__}({inside})"

    def extra_repr(self) -> str:
        """The text that `repr` shows in the brackets of a module without sub-modules."""
        return ""


def _torch_shape(module: Module, attribute: str) -> tuple[int, ...]:
    """The shape of a parameter or buffer in PyTorch's layout."""
    shape = np.shape(getattr(module, attribute))
    return tuple(shape[axis] for axis in module.torch_axes[attribute]) if attribute in module.torch_axes else shape


@contextmanager
def observe(callback: Callable[[Module, tuple, Any], None]) -> Iterator[None]:
    """Inside `with observe(callback):` every module calls callback(module, inputs, output) after its forward.

    The one mechanism for looking into a network: summary, the search for the first NaN, statistics per layer.
    """
    previous = Module._observers
    Module._observers = (*previous, callback)
    try:
        yield
    finally:
        Module._observers = previous
