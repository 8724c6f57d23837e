"""Cross-entropy: against the definition, with smoothing, and for logits that overflow exp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minires.functional as F
from minires import Tensor
from minires.testing import check_op, kink_free, shapes

SMOOTHING = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    logits = draw(kink_free(shapes(min_dims=2, max_dims=2, max_side=5)))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    return logits, draw(hnp.arrays(dtype, logits.shape[0], elements=st.integers(0, logits.shape[1] - 1)))


def definition(logits, labels, smoothing):
    """-sum_k target_k log p_k, averaged, one number at a time."""
    n, classes = logits.shape
    total = 0.0
    for row, label in zip(logits, labels):
        p = np.exp(row) / np.exp(row).sum()
        for k in range(classes):
            target = smoothing / classes + (1 - smoothing) * (k == label)
            total -= target * np.log(p[k]) / n
    return total


@given(case=logits_and_labels(), smoothing=SMOOTHING)
def test_cross_entropy(xp, case, smoothing):
    logits, labels = case
    loss = F.cross_entropy(Tensor(xp.asarray(logits)), xp.asarray(labels), smoothing)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(definition(logits, labels, smoothing), rel=1e-12, abs=1e-12)
    check_op(lambda x, y: F.cross_entropy(x, y, smoothing), xp.asarray(logits), xp.asarray(labels))


IGNORED = st.sampled_from([-100, 255, 0])


@given(case=logits_and_labels(), smoothing=SMOOTHING, ignore=IGNORED, weighted=st.booleans(), data=st.data())
def test_weights_and_ignored_labels(xp, case, smoothing, ignore, weighted, data):
    """Against the definition, one number at a time: each row, and each class in it, counts by its weight."""
    logits, labels = case
    n, classes = logits.shape
    labels = labels.astype(np.int64)
    labels[data.draw(hnp.arrays(bool, n))] = ignore
    weight = data.draw(hnp.arrays(np.float64, classes, elements=st.sampled_from([0.5, 0.25, 3.0])))
    weight = weight if weighted else np.ones(classes)
    total, counted = 0.0, 0.0
    for row, label in zip(logits, labels):
        if label != ignore:
            p = np.exp(row) / np.exp(row).sum()
            target = smoothing / classes + (1 - smoothing) * (np.arange(classes) == label)
            total -= (weight * target * np.log(p)).sum()
            counted += weight[label]
    options = {"weight": xp.asarray(weight) if weighted else None, "ignore_index": ignore}
    if counted == 0:
        with pytest.raises(ValueError, match=f"all labels are {ignore}, which is ignored"):
            F.cross_entropy(Tensor(xp.asarray(logits)), labels, smoothing, **options)
        return
    loss = F.cross_entropy(Tensor(xp.asarray(logits)), labels, smoothing, **options)
    assert loss.item() == pytest.approx(total / counted, rel=1e-12, abs=1e-12)
    check_op(lambda x, y: F.cross_entropy(x, y, smoothing, **options), xp.asarray(logits), labels)


def test_a_wrong_weight_or_a_label_beside_the_ignored_one():
    logits, labels = Tensor(np.zeros((2, 3))), np.array([0, 2])
    with pytest.raises(ValueError, match=r"cross_entropy: weight has shape \(2,\), expected \(3,\), one per class"):
        F.cross_entropy(logits, labels, weight=np.ones(2))
    for weight in ([0, 1, 0], [1, -1, 1], [np.nan, 1, 1], [np.inf, 1, 1]):
        with pytest.raises(ValueError, match="weight has negative or infinite numbers, or none but 0 for these labels"):
            F.cross_entropy(logits, labels, weight=weight)
    assert F.cross_entropy(logits, labels, weight=(1, 2, 3)).item() == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match=r"cross_entropy: labels range over -100..2, expected 0..2"):
        F.cross_entropy(logits, np.array([-100, 2]), ignore_index=0)
    assert F.cross_entropy(logits, [-100, 1]).item() == pytest.approx(np.log(3))


@given(case=logits_and_labels(), smoothing=SMOOTHING, shift=st.floats(-100, 100))
def test_a_shift_changes_nothing_and_gradient_rows_sum_to_0(xp, case, smoothing, shift):
    logits, labels = map(xp.asarray, case)
    x = Tensor(logits, requires_grad=True)
    loss = F.cross_entropy(x, labels, smoothing)
    assert F.cross_entropy(x + shift, labels, smoothing).item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-9)
    (loss * 3).backward()
    xp.testing.assert_allclose(x.grad.sum(axis=1), 0, atol=1e-12)


@given(case=logits_and_labels(), smoothing=SMOOTHING)
def test_equals_log_softmax_and_a_mean(xp, case, smoothing):
    """The same loss out of smaller operations gives the same gradient."""
    logits, labels = map(xp.asarray, case)
    n, classes = logits.shape
    target = xp.full((n, classes), smoothing / classes)
    target[xp.arange(n), labels] += 1 - smoothing
    whole, parts = Tensor(logits, requires_grad=True), Tensor(logits, requires_grad=True)
    F.cross_entropy(whole, labels, smoothing).backward()
    (-(F.log_softmax(parts) * target).sum(axis=1).mean()).backward()
    xp.testing.assert_allclose(whole.grad, parts.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_of_10_000(xp, dtype, smoothing):
    logits = Tensor(xp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype), requires_grad=True)
    right, wrong = xp.asarray([0, 1]), xp.asarray([1, 0])
    loss = F.cross_entropy(logits, right, smoothing)
    assert loss.item() == pytest.approx(smoothing * 1e4, rel=1e-6)  # a third each of 0, 2e4 and 1e4
    loss.backward()
    expected = [[2 / 3, -1 / 3, -1 / 3], [-1 / 3, 2 / 3, -1 / 3]]  # softmax - uniform, for smoothing 1
    xp.testing.assert_allclose(logits.grad, xp.asarray(expected) * smoothing / 2, rtol=1e-5, atol=1e-7)
    assert F.cross_entropy(logits, wrong).item() == pytest.approx(2e4)
    F.cross_entropy(logits, wrong, smoothing).backward()
    assert bool(xp.isfinite(logits.grad).all())


def test_labels_may_be_a_list_or_a_tensor():
    logits = Tensor([[1.0, 2.0], [3.0, 4.0]])
    losses = [F.cross_entropy(logits, labels).item() for labels in ([0, 1], np.array([0, 1]), Tensor([0, 1]))]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("shape", "labels", "smoothing", "error", "message"),
    [
        ((2, 3), [0, 3], 0, ValueError, r"labels range over 0\.\.3, expected 0\.\.2"),
        ((2, 3), [-1, 0], 0, ValueError, r"labels range over -1\.\.0, expected 0\.\.2"),
        ((2, 3), [0, 1, 2], 0, ValueError, r"logits have shape \(2, 3\) and labels \(3,\)"),
        ((6,), [0], 0, ValueError, r"logits have shape \(6,\)"),
        ((2, 3), [0.0, 1.0], 0, TypeError, "labels have dtype float64, expected integers"),
        ((0, 3), np.zeros(0, int), 0, ValueError, "hold nothing to average"),
        ((2, 3), [0, 1], 1.5, ValueError, "label_smoothing is 1.5, expected a number between 0 and 1"),
    ],
)
def test_errors(shape, labels, smoothing, error, message):
    with pytest.raises(error, match=message):
        F.cross_entropy(Tensor(np.ones(shape)), labels, smoothing)
