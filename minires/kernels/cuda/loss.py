"""The loss and the classifier before it: loss.cu launched, and matrix products.

Reading order: after loss.cu. Next: images.cu.
"""

from __future__ import annotations

from minires.device import Array, module_of
from minires.kernels.cuda import blas
from minires.kernels.cuda.batch_norm import column_sum, scale_and_shift
from minires.kernels.cuda.elementwise import convert
from minires.kernels.cuda.launch import THREADS, int64, program


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """See reference.linear; in float32, or tf32: bf16 ends before the classifier."""
    x = convert(x, "float32")
    features, outputs = weight.shape
    rows = x.size // features
    y = module_of(x).empty((*x.shape[:-1], outputs), dtype="float32")
    blas.product(blas.Matrix(x, rows, features), blas.Matrix(weight, features, outputs), blas.Matrix(y, rows, outputs))
    if bias is not None:
        scale_and_shift(y, None, bias, None, relu=False)
    return y


def linear_backward(
    dy: Array, x: Array, weight: Array, need_dx: bool, need_dweight: bool
) -> tuple[Array | None, Array | None, Array]:
    """See reference.linear_backward."""
    xp = module_of(dy)
    dtype, x, dy = x.dtype.name, convert(x, "float32"), convert(dy, "float32")
    features, outputs = weight.shape
    rows = x.size // features
    dx = dweight = None
    gradient = blas.Matrix(dy, rows, outputs)
    if need_dx:
        dx = xp.empty(x.shape, dtype="float32")
        blas.product(gradient, blas.Matrix(weight, features, outputs).T, blas.Matrix(dx, rows, features))
        dx = convert(dx, dtype)
    if need_dweight:
        dweight = xp.empty(weight.shape, dtype="float32")
        blas.product(blas.Matrix(x, rows, features).T, gradient, blas.Matrix(dweight, features, outputs))
    return dx, dweight, column_sum(dy)


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
