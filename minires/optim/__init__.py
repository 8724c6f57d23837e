"""Optimisers and learning-rate schedules.

Reading order: optimizer.py, schedules.py; clipping.py any time. Next: data/.
"""

from minires.optim import schedules
from minires.optim.clipping import clip_grad_norm
from minires.optim.optimizer import SGD, Adam, AdamW, Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm", "schedules"]
