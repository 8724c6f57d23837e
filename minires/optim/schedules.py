"""Learning-rate schedules: plain functions from the step, counted from 0, to the learning rate.

    schedule = schedules.one_cycle(lr=0.2, total_steps=1000)
    optimizer.lr = schedule(step)

A schedule has no state, being a function of the step alone: a resumed run needs only the step.

Reading order: after optimizer.py. Next: data/dataset.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """lr, always."""
    return lambda step: lr


def step(lr: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """lr, multiplied by gamma at each milestone (a step). The paper: 0.1, divided by 10 at 32k and 48k of 64k."""
    return lambda step: lr * gamma ** sum(step >= milestone for milestone in milestones)


def cosine(lr: float, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """From lr to 0 along half a cosine, after an optional linear warm-up (Loshchilov and Hutter 2017)."""

    def decay(step: int) -> float:
        done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)  # 0..1
        return lr * 0.5 * (1 + math.cos(math.pi * done))

    return warm_up(decay, lr, warmup_steps)


def one_cycle(lr: float, total_steps: int, warmup: float = 0.25) -> Schedule:
    """Rise linearly to the peak `lr` over the fraction `warmup` (0 to 1) of the steps, then fall linearly to 0.

    The triangular form of Smith and Topin 2017 (arXiv 1708.07120). Raises `ValueError` for another `warmup`.
    """
    if not 0 <= warmup <= 1:
        raise ValueError(f"one_cycle: warmup is {warmup}, expected a share of the steps between 0 and 1")
    peak = max(round(warmup * total_steps), 1)

    def decay(step: int) -> float:
        return lr * max(total_steps - step, 0) / max(total_steps - peak, 1)

    return warm_up(decay, lr, peak)


def warm_up(schedule: Schedule, lr: float, steps: int) -> Schedule:
    """Rise linearly to `lr` over the first `steps` steps, then follow `schedule`."""
    return lambda step: lr * (step + 1) / (steps + 1) if step < steps else schedule(step)


NAMES = ("constant", "step", "cosine", "one-cycle")


def build(name: str, lr: float, total_steps: int) -> Schedule:
    """The schedule called `name` for a run of `total_steps`. "step" divides by 10 at 1/2 and 3/4 of the run, as in the
    paper; "cosine" warms up over the first 5 %. Raises `ValueError` for an unknown name."""
    if name == "constant":
        return constant(lr)
    if name == "step":
        return step(lr, milestones=(-(-total_steps // 2), -(-total_steps * 3 // 4)))  # rounded up: not at step 0
    if name == "cosine":
        return cosine(lr, total_steps, warmup_steps=total_steps // 20)
    if name == "one-cycle":
        return one_cycle(lr, total_steps)
    raise ValueError(f"schedule: {name!r} is unknown, expected one of {', '.join(NAMES)}")
