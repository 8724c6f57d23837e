"""The training loss.

Reading order: after linear.py. Next: convolution.py.
"""

from __future__ import annotations

import numpy as np

from minires import kernels
from minires.device import Array, module_of, to_device
from minires.functional.arithmetic import check_floating
from minires.tensor import Tensor


def cross_entropy(logits: Tensor, labels: Array | Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of -sum_k target_k log softmax(logits)_k, a scalar.

    logits (N, K); labels (N,) integers in 0..K-1. The target is 1 - s + s/K for the true class and s/K for
    the others, where s is `label_smoothing` (Szegedy et al. 2015, section 7).
    Raises `ValueError` for wrong shapes, an empty batch or labels out of range, and `TypeError` for labels that are
    not integers, or logits that are. Labels on the GPU are not checked, since a check would stop the GPU: a label out
    of range makes the loss NaN.
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
    if module_of(labels) is np and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(
            f"cross_entropy: labels range over {labels.min()}..{labels.max()}, expected 0..{logits.shape[1] - 1}"
        )
    labels = to_device(labels, logits.device)
    backend = kernels.of(logits.data)
    loss, probabilities = backend.cross_entropy(logits.data, labels, label_smoothing)

    def backward(dy: Array) -> tuple[Array]:
        return (backend.cross_entropy_backward(dy, probabilities, labels, label_smoothing),)

    return Tensor.from_op(loss, (logits,), backward)
