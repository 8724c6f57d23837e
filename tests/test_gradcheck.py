"""gradcheck must let right gradients pass and find each kind of wrong one."""

from __future__ import annotations

import re

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import GradcheckError, Tensor, gradcheck
from minires.testing import LAYOUTS, kink_free_array, with_layout

X = kink_free_array((3, 2))
BN = (Tensor(np.ones(6)), Tensor(np.zeros(6)))
LARGE = kink_free_array((5, 6), 1)  # 30 x 30 elements: over the limit up to which the full Jacobian is compared


def custom(forward, backward):
    """An operation of one input: forward(x), backward(dy, x)."""

    def fn(x):
        return Tensor.from_op(forward(x.data), (x,), lambda dy: (backward(dy, x.data),))

    return fn


# Right gradients pass


@pytest.mark.parametrize("full", [None, True, False])
def test_right_gradients_pass(xp, full):
    assert gradcheck(lambda x: x * x, xp.asarray(X), full=full) is True
    assert gradcheck(lambda a, b: (a @ b, a.exp()), xp.asarray(X), xp.asarray(X.T), full=full) is True


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout(layout):
    assert gradcheck(lambda x: (x * x, x[1:]), with_layout(X, layout))


def test_any_shape():
    assert gradcheck(lambda x: x * x, np.float64(3.0))
    assert gradcheck(lambda x: x * x, [1.0, 2.0])
    assert gradcheck(lambda x: x * x, np.zeros((0, 3)))
    assert gradcheck(lambda x: x, X)  # the output is the input
    assert gradcheck(lambda x: (x, x, x * 2), X)


def test_integer_arrays_are_constants():
    labels = np.array([0, 1, 1])

    def fn(logits, labels_given, flags):
        assert isinstance(labels_given, np.ndarray)  # as it was given, not a Tensor
        assert labels_given.tolist() == labels.tolist()
        assert flags.dtype == bool
        return F.cross_entropy(logits, labels_given)

    assert gradcheck(fn, X, labels, np.array([True]))


def test_a_missing_gradient_is_right_where_nothing_depends_on_the_input():
    assert gradcheck(lambda a, b: a * 2, X, X)
    assert gradcheck(lambda a: Tensor(np.ones(3)), X)


def test_the_seed_decides_the_directions():
    def first_step(seed: int) -> np.ndarray:
        seen = []
        gradcheck(lambda x: (seen.append(x.data), x * x)[1], X, seed=seed, full=False)
        return np.abs(seen[2] - seen[0]) / 1e-6  # the third call is at x + eps * direction

    assert (first_step(0) == first_step(0)).all()
    assert (first_step(0) != first_step(1)).all()
    # no coordinate escapes
    assert first_step(0).min() > 0.49
    assert first_step(0).max() < 1.51


# Wrong gradients are found


@pytest.mark.parametrize("x", [X, LARGE], ids=["full Jacobian", "direction only"])
@pytest.mark.parametrize(
    "backward",
    [
        lambda dy, x: 2 * dy * 2 * x,
        lambda dy, x: 0 * dy,
        lambda dy, x: -dy * 2 * x,
        lambda dy, x: dy * x,
        lambda dy, x: dy * 2 * x + 1e-3,
        lambda dy, x: dy * 2 * x * (1 + 1e-3),
        lambda dy, x: (dy * 2 * x)[::-1],
        lambda dy, x: 2 * x,
        lambda dy, x: dy.sum() * 2 * x,
        lambda dy, x: dy * 2 * x * (np.arange(x.size).reshape(x.shape) != 1),  # one element only
    ],
)
def test_wrong_gradients_are_found(x, backward):
    with pytest.raises(GradcheckError, match="analytic gradient"):
        gradcheck(custom(lambda x: x * x, backward), x)


def test_the_message_names_input_element_and_both_values():
    def fn(a, b):
        def backward(dy):
            wrong = dy * a.data
            wrong[4, 1] += 0.5
            return dy * b.data, wrong

        return Tensor.from_op(a.data * b.data, (a, b), backward)

    message = r"input 1 of shape \(5, 6\), element \(4, 1\): analytic gradient (\S+), numeric (\S+); "
    with pytest.raises(GradcheckError) as caught:
        gradcheck(fn, LARGE, LARGE)
    analytic, numeric = map(float, re.search(message, str(caught.value)).groups())
    assert analytic - numeric == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(GradcheckError, match="right factor of shape"):
        gradcheck(fn, LARGE, LARGE, names=["left factor", "right factor"])


def test_the_error_is_an_assertion_error():
    assert issubclass(GradcheckError, AssertionError)
    assert mr.GradcheckError is GradcheckError


def test_the_full_jacobian_finds_what_one_cotangent_cannot_see():
    # dx is wrong by a multiple of v with <w, v> = 0 for the very cotangent w that the seed draws: a direction check
    # sees nothing (that this happens by chance has probability 0, so it is arranged).
    first = []

    def backward(dy, x):
        if not first:
            first.append(dy.copy())
        projection = (dy * first[0]).sum() / (first[0] ** 2).sum() * first[0]
        return dy + (dy - projection)

    fn = custom(lambda x: x.copy(), backward)
    assert gradcheck(fn, X, full=False)
    first.clear()
    with pytest.raises(GradcheckError, match="for output 0, element"):
        gradcheck(fn, X)


def test_a_missing_gradient_is_found():
    with pytest.raises(GradcheckError, match=r"input 0 .*\(no gradient arrived\)"):
        gradcheck(lambda x: Tensor((x * x).data), X)
    with pytest.raises(GradcheckError, match=r"input 1 .*\(no gradient arrived\)"):
        gradcheck(lambda a, b: a * b.detach(), X, X)
    with pytest.raises(GradcheckError, match="no gradient arrived"):
        gradcheck(custom(lambda x: x * x, lambda dy, x: None), LARGE)


def test_every_output_of_a_tuple_counts():
    wrong = custom(lambda x: x * x, lambda dy, x: dy * x)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: (x * 2, wrong(x)), LARGE)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: (wrong(x), x * 2), LARGE)


@pytest.mark.parametrize("op", [F.softmax, lambda x: F.batch_norm(x, *BN, np.zeros(6), np.ones(6), True)])
@pytest.mark.parametrize("factor", [0, 2])
def test_operations_whose_outputs_sum_to_a_constant(op, factor):
    """For these, y.sum().backward() gives zero whatever the backward does: a check based on it proves nothing."""

    def broken(x):
        y = op(x)
        return Tensor.from_op(y.data, (y,), lambda dy: (factor * dy,))

    x = Tensor(LARGE.copy(), requires_grad=True)
    broken(x).sum().backward()
    assert abs(x.grad).max() < 1e-12  # as good as 0, and rightly so: nothing is learnt
    assert gradcheck(op, LARGE)
    with pytest.raises(GradcheckError):
        gradcheck(broken, LARGE)


# Wrong functions are found


def test_modified_inputs_are_found():
    def in_forward(x):
        x.data[0, 0] += 1
        return x * 2

    def in_backward(dy, x):
        x *= 2
        return dy * x

    with pytest.raises(GradcheckError, match="fn modified input 0"):
        gradcheck(in_forward, X.copy())
    with pytest.raises(GradcheckError, match="backward modified input 0"):
        gradcheck(custom(lambda x: x * x, in_backward), X.copy())
    with pytest.raises(GradcheckError, match="fn modified input 1"):
        gradcheck(lambda x, i: (i.__iadd__(1), x)[1] * 1, X, np.array([1]))


def test_a_modified_incoming_gradient_is_found():
    def backward(dy, x):
        dy *= 2 * x
        return dy

    with pytest.raises(GradcheckError, match="backward modified the gradient it was given for output 0"):
        gradcheck(custom(lambda x: x * x, backward), X)


def test_randomness_is_found():
    rng = np.random.default_rng(0)
    with pytest.raises(GradcheckError, match="not deterministic"):
        gradcheck(lambda x: F.dropout(x, 0.5, generator=rng), LARGE)
    calls = []
    with pytest.raises(GradcheckError, match="not deterministic: a second call gave outputs of other shapes"):
        gradcheck(lambda x: (calls.append(1), x[len(calls) % 2 :])[1], X)
    with pytest.raises(GradcheckError, match="not deterministic"):  # another value where nothing is recorded
        gradcheck(lambda x: x * (1.0 if mr.is_grad_enabled() else 2.0), X)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_not_finite_are_found():
    with pytest.raises(GradcheckError, match="output 0 holds values that are not finite"):
        gradcheck(lambda x: x.log(), -abs(X))
    with pytest.raises(GradcheckError, match="the gradient of input 0 holds values that are not finite"):
        gradcheck(custom(lambda x: x * x, lambda dy, x: dy * np.nan), X)


def test_wrong_dtypes_are_found():
    with pytest.raises(GradcheckError, match="output 0 has dtype float32, expected float64"):
        gradcheck(custom(lambda x: x.astype(np.float32), lambda dy, x: dy), X)
    with pytest.raises(GradcheckError, match="gradient of input 0 has dtype float32, expected float64"):
        gradcheck(custom(lambda x: x * 1.0, lambda dy, x: dy.astype(np.float32)), X)
    with pytest.raises(GradcheckError, match="output 0 is a ndarray, expected a Tensor"):
        gradcheck(lambda x: x.data, X)
    with pytest.raises(TypeError, match="input 1 has dtype float32, expected float64"):
        gradcheck(lambda a, b: a * b, X, X.astype(np.float32))
    with pytest.raises(TypeError, match="at least one float64 array"):
        gradcheck(lambda x: x, np.array([1]))
    # computing in float32 on the way is noticed by the differences, which it makes ragged
    with pytest.raises(GradcheckError, match="analytic"):
        gradcheck(custom(lambda x: (x.astype(np.float32) ** 2).astype(np.float64), lambda dy, x: dy * 2 * x), LARGE)


def test_shared_gradients_are_found(monkeypatch):
    monkeypatch.setattr(Tensor, "accumulate_grad", lambda self, gradient: setattr(self, "grad", gradient))
    with pytest.raises(GradcheckError, match="shares memory"):
        gradcheck(lambda a, b: a + b, X, X.copy())


def test_arguments():
    with pytest.raises(ValueError, match="input 0 holds values that are not finite"):
        gradcheck(lambda x: x, np.array([np.inf]))
    with pytest.raises(RuntimeError, match="no_grad"), mr.no_grad():
        gradcheck(lambda x: x, X)
    with pytest.raises(ValueError, match="names has 1 entries, expected one for each of 2 arrays"):
        gradcheck(lambda a, b: a, X, X, names=["a"])
