"""The fully connected layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires.functional as F
from minires import Tensor
from minires.testing import check_op, kink_free, kink_free_array, shapes


@given(x=kink_free(shapes(max_dims=3)), outputs=st.integers(1, 4), with_bias=st.booleans())
def test_linear(xp, x, outputs, with_bias):
    arrays = [x, kink_free_array((x.shape[-1], outputs), 1)]
    if with_bias:
        arrays.append(kink_free_array((outputs,), 2))
    expected = arrays[0] @ arrays[1] + (arrays[2] if with_bias else 0)
    arrays = [xp.asarray(a) for a in arrays]
    xp.testing.assert_allclose(F.linear(*map(Tensor, arrays)).data, expected, rtol=1e-12, atol=1e-12)
    check_op(F.linear, *arrays)


def test_no_gradient_for_a_constant_input():
    x, weight = Tensor(np.ones((2, 3))), Tensor(np.ones((3, 4)), requires_grad=True)
    F.linear(x, weight).backward(np.ones((2, 4)))
    assert x.grad is None
    assert weight.grad.tolist() == [[2] * 4] * 3


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3), (4, 5), None, r"linear: input has shape \(2, 3\), the weight \(4, 5\); expected \(\.\.\., C\)"),
        ((), (4, 5), None, r"linear: input has shape \(\)"),
        ((2, 3), (3,), None, "linear: input has shape"),
        ((2, 3), (3, 4), (3,), r"linear: bias has shape \(3,\), expected \(4,\)"),
    ],
)
def test_errors(x, weight, bias, message):
    tensors = [Tensor(np.ones(shape)) for shape in (x, weight)]
    with pytest.raises(ValueError, match=message):
        F.linear(*tensors, None if bias is None else Tensor(np.ones(bias)))
