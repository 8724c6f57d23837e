"""Optimisers and learning-rate schedules.

Reading order: optimizer.py, schedules.py. Next: data/.
"""

from minires.optim import schedules
from minires.optim.optimizer import SGD, Adam, AdamW, Optimizer, clip_grad_norm

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm", "schedules"]
