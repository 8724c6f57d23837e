"""Optimisers over one flat buffer.

All parameters are moved into one flat array and become views of it. All gradients are views of a second one. A step is
then one pass over a few large arrays instead of hundreds of small ones: for ResNet-101, 1 update instead of 314.

Reading order: after models/resnet_cifar.py. Next: schedules.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from minires import kernels
from minires.device import Array, module_of, to_device
from minires.nn import Module, Parameter


class Optimizer:
    """Base class: the flat buffers, and groups of parameters with settings of their own.

    params  an iterable of Parameters, or of groups {"params": [...], "lr": ..., "weight_decay": ...} whose
            settings override the optimiser's

    `step` leaves a parameter with grad None alone, as in PyTorch. A gradient is a view of the flat array, which the
    next backward overwrites: copy a gradient to keep it. Raises `ValueError` for no parameters, a repeated parameter,
    mixed dtypes or devices, and settings out of range; `TypeError` for anything but Parameters. `step` raises
    `RuntimeError` if a parameter's array was replaced (by `model.to(...)`) after the optimiser was made.
    """

    slots: tuple[str, ...] = ()  # names of the flat buffers kept between steps

    def __init__(self, params: Iterable[Parameter] | Iterable[dict[str, Any]], **settings: Any):
        if isinstance(params, Module):
            raise TypeError(
                f"{type(self).__name__}: got the {type(params).__name__} itself, expected model.parameters()"
            )
        groups: list[Any] = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self.groups = [{**settings, **group, "params": list(group["params"])} for group in groups]
        self.params: list[Parameter] = [p for group in self.groups for p in group["params"]]
        if not self.params:
            raise ValueError(f"{type(self).__name__}: got no parameters to optimise")
        if wrong := [type(p).__name__ for p in self.params if not isinstance(p, Parameter)]:
            raise TypeError(f"{type(self).__name__}: got a {wrong[0]}, expected Parameters: model.parameters()")
        if len({id(p) for p in self.params}) != len(self.params):
            raise ValueError(f"{type(self).__name__}: a parameter is listed twice")
        kinds = {(p.device, str(p.dtype)) for p in self.params}
        if len(kinds) > 1:
            raise ValueError(f"{type(self).__name__}: parameters differ in device or dtype: {sorted(kinds)}")
        for group in self.groups:
            unknown = set(group) - set(settings) - {"params"}
            if unknown:
                raise ValueError(f"{type(self).__name__}: unknown settings {sorted(unknown)} in a group")
            self._check(group)
        self.steps = 0
        self._ratios = [1.0 for _ in self.groups]
        self._scheduled, self._reference = [math.nan for _ in self.groups], 1.0
        self._note_ratios()
        self.prepared_lr: dict[int, float | Array] = {}  # by group: its rate as the updates take it
        self._flatten()

    def _flatten(self) -> None:
        xp = module_of(self.params[0].data)
        size, dtype = sum(p.size for p in self.params), self.params[0].dtype
        self.flat = xp.empty(size, dtype=dtype)
        self.flat_grad = xp.zeros(size, dtype=dtype)
        self.state: dict[str, Array] = {name: xp.zeros(size, dtype=dtype) for name in self.slots}
        self._views = []
        self._ends = []  # where each parameter ends in the flat arrays
        begin = 0
        for p in self.params:
            end = begin + p.size
            view = self.flat[begin:end].reshape(p.shape)
            view[...] = p.data
            p.data = view
            p.grad_buffer = buffer = self.flat_grad[begin:end].reshape(p.shape)
            if p.grad is not None:
                buffer[...] = p.grad
                p.grad = buffer
            self._views.append(view)
            self._ends.append(end)
            begin = end

    @property
    def lr(self) -> float:
        """The largest learning rate of all groups. Assigning it, as a schedule does, keeps the ratios of the groups'
        rates; a rate that was changed by hand, in `groups`, has a new ratio to the others from then on."""
        return max(group["lr"] for group in self.groups)

    @lr.setter
    def lr(self, value: float) -> None:
        self._note_ratios()
        for group, ratio in zip(self.groups, self._ratios):
            self._check({**group, "lr": value})
            group["lr"] = value * ratio
        self._scheduled = [group["lr"] for group in self.groups]
        self._reference = value or self._reference

    def _note_ratios(self) -> None:
        """Note the ratios of the rates that somebody changed since `lr` was assigned, to the rate that was assigned."""
        rates = [group["lr"] for group in self.groups]
        changed = [rate != before for rate, before in zip(rates, self._scheduled)]
        if all(changed) and max(rates) > 0:  # a new beginning
            self._reference = max(rates)
        self._ratios = [r / self._reference if c else old for r, c, old in zip(rates, changed, self._ratios)]
        self._scheduled = rates

    def zero_grad(self) -> None:
        """Forget all gradients. Without this call the next backward adds to the old gradients."""
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient, once."""
        self.advance()
        self.apply()

    def advance(self) -> None:
        """The first half of a step: count the step, and store the learning rate for the update.

        A CUDA graph replays `apply` alone: everything that changes from step to step must be on the device
        (docs/fast-cuda.md).
        """
        self.steps += 1
        backend = kernels.of(self.flat)
        for group in self.groups:
            betas, previous = group.get("betas", (0.0, 0.0)), self.prepared_lr.get(id(group))
            self.prepared_lr[id(group)] = backend.prepare_lr(previous, self.flat, group["lr"], self.steps, betas)

    def apply(self) -> None:
        """The second half: the arithmetic, at the learning rate that `advance` has stored."""
        for p, view in zip(self.params, self._views):
            if p.data is not view:
                raise RuntimeError(
                    f"{type(self).__name__}: a parameter of shape {p.shape} got a new array after the optimiser was "
                    "made, by model.to(...), another optimiser or w.data = ...; make the optimiser last, and change "
                    "weights in place: w.data[...] = ..."
                )
            if p.grad is not None and p.grad is not p.grad_buffer:  # the caller assigned p.grad
                assert p.grad_buffer is not None  # since _flatten
                p.grad_buffer[...] = p.grad
                p.grad = p.grad_buffer
        for group, begin, end in self._runs():
            self._update(slice(begin, end), group)

    def _runs(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """(group, begin, end) of each stretch of the flat arrays in which all parameters have gradients."""
        index = 0
        for group in self.groups:
            begin = end = self._ends[index - 1] if index else 0
            for p in group["params"]:
                if p.grad is None:
                    if end > begin:
                        yield group, begin, end
                    begin = self._ends[index]
                end = self._ends[index]
                index += 1
            if end > begin:
                yield group, begin, end

    def _lr(self, group: dict[str, Any]) -> float | Array:
        """The learning rate in the form that the kernels take: a number, or an array on the device."""
        return self.prepared_lr.get(id(group), group["lr"])

    def _update(self, part: slice, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "eps", "momentum"):
            if name in group and not 0 <= group[name] < float("inf"):
                raise ValueError(f"{type(self).__name__}: {name} is {group[name]}, expected a number >= 0")

    def __repr__(self) -> str:
        groups = [{**group, "params": len(group["params"])} for group in self.groups]
        text = "; ".join(", ".join(f"{name}={value!r}" for name, value in group.items()) for group in groups)
        return f"{type(self).__name__}({text})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: an optimiser cannot be copied or pickled, since the copied parameters would be no "
            "views of its buffer; make a new one for a copied model, and give it this one's state_dict()"
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state that `load_state_dict` restores exactly: {"steps": (), "lr": (groups,), and each flat buffer}."""
        state = {name: np.array(to_device(array, "cpu")) for name, array in self.state.items()}
        return {
            "steps": np.array(self.steps),
            "lr": np.array([group["lr"] for group in self.groups], dtype=np.float64),
            **state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a `state_dict` of the same kind of optimiser over the same parameters.

        Raises `ValueError` naming the misfit, and changes nothing then.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"{type(self).__name__}: the state holds {sorted(state)}, expected {sorted(own)}")
        for name, array in own.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {np.shape(state[name])}, expected {array.shape}"
                )
        steps, rates = int(state["steps"]), [float(lr) for lr in state["lr"]]
        for group, lr in zip(self.groups, rates):
            self._check({**group, "lr": lr})
        arrays = {name: module_of(own).asarray(state[name], dtype=own.dtype) for name, own in self.state.items()}
        self.steps = steps  # from here on nothing can fail
        self._note_ratios()
        self._reference = max(rates) or self._reference
        for i, (group, lr) in enumerate(zip(self.groups, rates)):
            group["lr"] = lr
            if max(rates) > 0 and not math.isclose(lr, self._ratios[i] * max(rates)):  # was changed by hand
                self._ratios[i] = lr / max(rates)
        self._scheduled = rates
        for name, array in arrays.items():
            self.state[name][...] = array


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's variant and L2 weight decay; PyTorch's update.

    The rule stands at `reference.sgd_update`.
    """

    slots = ("velocity",)

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("SGD: nesterov=True needs a momentum > 0")

    def _update(self, part: slice, group: dict[str, Any]) -> None:
        # The velocity starts at zero: momentum * velocity + g is then PyTorch's first step (velocity = g) too.
        kernels.of(self.flat).sgd_update(
            self.flat[part], self.flat_grad[part], self.state["velocity"][part],
            self._lr(group), group["momentum"], group["weight_decay"], group["nesterov"],
        )  # fmt: skip


class Adam(Optimizer):
    """Adam with L2 weight decay added to the gradient; PyTorch's update.

    The rule stands at `reference.adam_update`. Source: Kingma and Ba 2015 (arXiv 1412.6980).
    """

    slots = ("mean", "square")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"{type(self).__name__}: betas are {group['betas']}, expected two numbers in [0, 1)")

    def _update(self, part: slice, group: dict[str, Any]) -> None:
        kernels.of(self.flat).adam_update(
            self.flat[part], self.flat_grad[part], self.state["mean"][part], self.state["square"][part],
            self.steps, self._lr(group), *group["betas"], group["eps"], group["weight_decay"], self.decoupled,
        )  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019 (arXiv 1711.05101)."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)
