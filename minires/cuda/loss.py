"""Softmax and cross-entropy, and what is kept of a step: loss.cu launched.

Reading order: after loss.cu. Next: images.cu.
"""

from __future__ import annotations

from minires.cuda.launch import THREADS, int64, program
from minires.device import Array, module_of


def cross_entropy(logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
    """See reference.cross_entropy; two launches."""
    xp = module_of(logits)
    logits, labels = xp.ascontiguousarray(logits), int64(labels)
    rows, classes = logits.shape
    probabilities, losses, loss = (xp.empty(s, dtype="float32") for s in (logits.shape, rows, ()))
    kernels = program("loss")
    kernels["cross_entropy"](
        (-(-rows // 8),), (32, 8), logits=logits, labels=labels, probabilities=probabilities, losses=losses,
        smoothing=label_smoothing, rows=rows, classes=classes,
    )  # fmt: skip
    kernels["mean_of"]((1,), (THREADS,), values=losses, mean=loss, count=rows)
    return loss, probabilities


def cross_entropy_backward(dloss: Array, probabilities: Array, labels: Array, label_smoothing: float) -> Array:
    """See reference.cross_entropy_backward."""
    xp = module_of(probabilities)
    probabilities, labels = xp.ascontiguousarray(probabilities), int64(labels)
    rows, classes = probabilities.shape
    dlogits = xp.empty(probabilities.shape, dtype="float32")
    program("loss")["cross_entropy_backward"](
        (-(-rows * classes // THREADS),), (THREADS,), dloss=dloss, probabilities=probabilities,
        labels=labels, dlogits=dlogits, smoothing=label_smoothing, rows=rows, classes=classes,
    )  # fmt: skip
    return dlogits


def record_step(loss: Array, logits: Array, labels: Array, results: Array, slot: int) -> None:
    """results[slot] = (loss, accuracy) of a step, for results (slots, 2) on the device; nothing waits."""
    rows, classes = logits.shape
    program("loss")["record_step"](
        (1,), (THREADS,), loss=loss, logits=logits, labels=labels, results=results, slot=slot, slots=len(results),
        rows=rows, classes=classes,
    )  # fmt: skip
