"""The training loss.

Reading order: after linear.py. Next: convolution.py.
"""

from __future__ import annotations

import numpy as np

from minires import kernels
from minires.device import Array, module_of, to_device
from minires.functional.arithmetic import check_floating
from minires.functional.more import weighted_cross_entropy
from minires.tensor import Tensor


def cross_entropy(
    logits: Tensor,
    labels: Array,
    label_smoothing: float = 0.0,
    weight: Array | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The mean over the batch of -sum_k target_k log softmax(logits)_k, a scalar.

    logits (N, K); labels (N,) integers in 0..K-1, in an array, a list or a Tensor. The target is 1 - s + s/K for the
    true class and s/K for the others, where s is `label_smoothing` (Szegedy et al. 2015, section 7).

    weight        (K,), for rare classes: the term of class k counts weight[k] times, and the mean is divided by the sum
                  of the labels' weights, not by N, as in PyTorch
    ignore_index  the label of rows that do not count: images, or pixels, that nobody has labelled

    Raises `ValueError` for wrong shapes, labels out of range, nothing to average; `TypeError` for wrong dtypes. With
    `weight` None and `ignore_index` -100, labels on the GPU are not looked at: a wrong one makes the loss NaN.
    """
    check_floating("cross_entropy", logits)
    labels = labels.data if isinstance(labels, Tensor) else labels
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy: logits have shape {logits.shape} and labels {labels.shape}; expected (N, K) and (N,)"
        )
    if 0 in logits.shape:
        raise ValueError(f"cross_entropy: logits of shape {logits.shape} hold nothing to average")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels have dtype {labels.dtype}, expected integers")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected a number between 0 and 1")
    if module_of(labels) is np or weight is not None or ignore_index != -100:
        counted = labels != ignore_index
        if not counted.all():
            logits, labels = logits[to_device(counted, logits.device)], labels[counted]
            if labels.size == 0:
                raise ValueError(f"cross_entropy: all labels are {ignore_index}, which is ignored: nothing to average")
        if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
            raise ValueError(
                f"cross_entropy: labels range over {labels.min()}..{labels.max()}, expected 0..{logits.shape[1] - 1}"
            )
    labels = to_device(labels, logits.device)
    if weight is not None:
        return weighted_cross_entropy(logits, labels, label_smoothing, weight)
    backend = kernels.of(logits.data)
    loss, probabilities = backend.cross_entropy(logits.data, labels, label_smoothing)

    def backward(dy: Array) -> tuple[Array]:
        return (backend.cross_entropy_backward(dy, probabilities, labels, label_smoothing),)

    return Tensor.from_op(loss, (logits,), backward)
