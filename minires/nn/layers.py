"""The layers: each a functional operation with its parameters and settings.

Weights are drawn from `generator`, or from the default generator, which `minires.manual_seed` resets. Convolution and
linear layers start as in PyTorch: uniform in ±1/sqrt(fan_in).

Reading order: after init.py. Next: branch.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

import minires.functional as F
from minires.device import Array
from minires.nn import advice
from minires.nn.init import fans, uniform_
from minires.nn.module import Module, Parameter
from minires.reference import Geometry, Pair, Running, pair
from minires.tensor import Tensor


def _positive(**values: int) -> None:
    for name, value in values.items():
        if not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"{name} is {value!r}, expected an integer >= 1")


class Conv2d(Module):
    """Convolution of (N,H,W,C) images; see `functional.conv2d`. The weight is (kh, kw, C/groups, O)."""

    torch_axes: ClassVar = {"weight": (3, 2, 0, 1)}  # PyTorch: (O, C/groups, kh, kw)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        generator: np.random.Generator | None = None,
    ):
        super().__init__()
        _positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: groups={groups} must divide in_channels={in_channels} and {out_channels=}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        _ = pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1)  # raise ValueError
        self.stride, self.padding, self.dilation = stride, padding, dilation
        shape = (*self.kernel_size, in_channels // groups, out_channels)
        self.weight = Parameter(np.empty(shape, np.float32))
        bound = 1 / math.sqrt(fans(self.weight)[0])
        uniform_(self.weight, bound, generator)
        self.bias = uniform_(Parameter(np.empty(out_channels, np.float32)), bound, generator) if bias else None

    @property
    def geometry(self) -> Geometry:
        """Kernel, stride, padding and dilation, each as (vertical, horizontal)."""
        numbers = (pair(name, getattr(self, name), 0) for name in ("stride", "padding", "dilation"))
        return Geometry(self.kernel_size, *numbers)

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,Ho,Wo,O)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


class BatchNorm2d(Module):
    """Batch normalisation per channel; see `functional.batch_norm`.

    A frozen batch norm, see `freeze_batch_norm`, computes in training as in evaluation.
    """

    buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    frozen = False

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        _positive(num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)
        self.num_batches_tracked = np.array(0, np.int64)  # int64, as in PyTorch

    @property
    def uses_batch(self) -> bool:
        """Whether forward uses this batch's statistics and moves the running statistics."""
        return self.training and not self.frozen

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> the same shape; in training mode the running statistics move."""
        return F.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            self.uses_batch, self.momentum, self.eps, num_batches_tracked=self.num_batches_tracked,
        )  # fmt: skip

    @property
    def running(self) -> Running:
        """What `forward` moves in training."""
        return Running(self.running_mean, self.running_var, self.num_batches_tracked, self.momentum)

    def scale_and_shift(self) -> tuple[Array, Array]:
        """(scale, shift), both (C,): evaluation is x * scale + shift."""
        scale = self.weight.data / (self.running_var + self.eps) ** 0.5
        return scale, self.bias.data - self.running_mean * scale

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class FoldedBatchNorm2d(Module):
    """The rest of a batch norm after `minires.fold` has moved its scale and shift into the convolution before."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x


Layers = Sequence[tuple[Conv2d, BatchNorm2d | FoldedBatchNorm2d]]  # of a residual branch, see branch.py


class Linear(Module):
    """x @ weight + bias; the weight is (in_features, out_features)."""

    torch_axes: ClassVar = {"weight": (1, 0)}  # PyTorch: (out_features, in_features)

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, generator: np.random.Generator | None = None
    ):
        super().__init__()
        _positive(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(in_features)
        self.weight = uniform_(Parameter(np.empty((in_features, out_features), np.float32)), bound, generator)
        self.bias = uniform_(Parameter(np.empty(out_features, np.float32)), bound, generator) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.relu(x)


class MaxPool2d(Module):
    """The maximum of each window; see `functional.max_pool2d`."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0):
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,Ho,Wo,C)."""
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        """The settings."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(MaxPool2d):
    """The mean of each window; see `functional.avg_pool2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,Ho,Wo,C)."""
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class GlobalAvgPool2d(Module):
    """The mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(N,H,W,C) -> (N,C)."""
        return F.global_avg_pool2d(x)


class Flatten(Module):
    """All axes but the first become one."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, features)."""
        return F.flatten(x, 1)


class Dropout(Module):
    """In training, zeroes each element with probability p; see `functional.dropout`."""

    def __init__(self, p: float = 0.5, generator: np.random.Generator | None = None):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p is {p}, expected a probability between 0 and 1")
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        """The settings."""
        return f"p={self.p}"


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Any) -> Any:
        """Anything."""
        return x


class ModuleList(Module):
    """Modules in a list, to be called by hand: indices, slices, `len`, iteration and `append` work as for a list.

    In a list of Python's a module would be no part of the network: not trained, not moved, not saved.
    Raises `TypeError` for anything but Modules.
    """

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add a module at the end."""
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: element {len(self)} is not a Module but {advice.no_module(module)}"
            )
        setattr(self, str(len(self)), module)  # named "0", "1", ... as in PyTorch

    def __iter__(self) -> Iterator[Any]:
        return (module for _, module in self.named_children())

    def __len__(self) -> int:
        return len(list(self.named_children()))

    def __getitem__(self, index: int | slice) -> Any:  # a Module of any class: model[0].weight is no error for editors
        found = list(self)[index]
        if isinstance(index, slice):
            return Sequential(*found) if isinstance(self, Sequential) else ModuleList(found)
        return found


class Sequential(ModuleList):
    """Modules called one after the other."""

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """The last module's output."""
        for module in self:
            x = module(x)
        return x
