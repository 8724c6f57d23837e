"""Optimiser updates: optimizers.cu launched, one pass over each flat buffer.

Reading order: after images.py. Next: branch.py.
"""

from __future__ import annotations

from minires.cuda.launch import THREADS, blocks, program
from minires.device import Array, module_of


def prepare_lr(previous: Array | None, like: Array, lr: float, step: int, betas: tuple[float, float]) -> Array:
    """See reference.prepare_lr: (4,) on the device: lr, Adam's two corrections, and 0, or what `stop_unless_finite`
    makes of it; in `previous` if given.

    The numbers go as arguments of a launch: no copy, no waiting. A captured update reads what was set before its
    replay.
    """
    # `previous` is a number after a step by the reference kernels.
    xp = module_of(like)
    schedule = previous if isinstance(previous, xp.ndarray) else xp.empty(4, dtype="float32")
    beta1, beta2 = betas
    program("optimizers")["set_schedule"](
        (1,), (1,), schedule=schedule, lr=lr, correction1=1 - beta1**step, correction2=1 - beta2**step
    )
    return schedule


def stop_unless_finite(loss: Array, stopped: Array, schedule: Array) -> None:
    """No update by `schedule` if the loss () is not finite, or if an earlier one has set `stopped`. Nothing waits."""
    program("optimizers")["stop_unless_finite"]((1,), (1,), loss=loss, stopped=stopped, schedule=schedule)


def _prepared(parameter: Array, lr: float | Array, step: int, betas: tuple[float, float]) -> Array:
    """`lr` if `prepare_lr` has made it, else what it makes of that number."""
    return lr if isinstance(lr, module_of(parameter).ndarray) else prepare_lr(None, parameter, lr, step, betas)


def sgd_update(
    parameter: Array,
    gradient: Array,
    velocity: Array,
    lr: float | Array,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """See reference.sgd_update; `lr` may also be a schedule on the device (prepare_lr)."""
    schedule = _prepared(parameter, lr, 1, (0.0, 0.0))  # SGD reads lr alone
    program("optimizers")["sgd_update"](
        (blocks(parameter.size),), (THREADS,), parameter=parameter, gradient=gradient, velocity=velocity,
        schedule=schedule, momentum=momentum, weight_decay=weight_decay, nesterov=int(nesterov), size=parameter.size,
    )  # fmt: skip


def adam_update(
    parameter: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    step: int,
    lr: float | Array,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """See reference.adam_update; `lr` may also be a schedule on the device, which then also has the step."""
    schedule = _prepared(parameter, lr, step, (beta1, beta2))
    program("optimizers")["adam_update"](
        (blocks(parameter.size),), (THREADS,), parameter=parameter, gradient=gradient, mean=mean, square=square,
        schedule=schedule, beta2=beta2, one_minus_beta1=1 - beta1, one_minus_beta2=1 - beta2, eps=eps,
        weight_decay=weight_decay, decoupled=int(decoupled), size=parameter.size,
    )  # fmt: skip
