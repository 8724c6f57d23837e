"""Gradients kept below a norm, for losses that explode now and then.

Reading order: any time after optimizer.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from minires.nn import Parameter


def clip_grad_norm(params: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients to a joint L2 norm of at most `max_norm`; return the norm before.

    Source: Pascanu et al. 2013, algorithm 1. Raises `ValueError` unless max_norm > 0.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm is {max_norm}, expected a number > 0")
    gradients = [p.grad for p in params if p.grad is not None]
    norm = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients) ** 0.5
    if norm > max_norm:
        for g in gradients:
            g *= max_norm / norm
    return norm
