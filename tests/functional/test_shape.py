"""Operations that move numbers: values as NumPy's, gradients moved back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minires.functional as F
from minires import Tensor
from minires.testing import check_op, kink_free, kink_free_array, shapes


@given(x=kink_free(shapes()), data=st.data())
def test_reshape(xp, x, data):
    shape = data.draw(st.permutations(x.shape)) + data.draw(st.sampled_from([[], [1]]))
    if data.draw(st.booleans()):
        shape[data.draw(st.integers(0, len(shape) - 1))] = -1
    x = xp.asarray(x)
    xp.testing.assert_array_equal(Tensor(x).reshape(*shape).data, x.reshape(shape))
    xp.testing.assert_array_equal(Tensor(x).reshape(tuple(shape)).data, x.reshape(shape))
    check_op(lambda x: x.reshape(*shape), x)


@given(x=kink_free(shapes()))
def test_flatten(xp, x):
    assert F.flatten(Tensor(x)).shape == (x.size,)
    for start in range(-x.ndim, x.ndim):
        kept = x.shape[: start % x.ndim]
        assert F.flatten(Tensor(x), start).shape == (*kept, x.size // int(np.prod(kept)))
        check_op(lambda x, start=start: F.flatten(x, start), xp.asarray(x))


@pytest.mark.parametrize("start", [-4, 4])
def test_flatten_from_an_axis_that_is_not_there(start):
    with pytest.raises(ValueError, match=rf"flatten: start_axis {start} is out of range for shape \(2, 3, 4\)"):
        F.flatten(Tensor(np.zeros((2, 3, 4))), start)


def test_flatten_of_an_empty_batch():
    assert F.flatten(Tensor(np.zeros((0, 2, 3))), 1).shape == (0, 6)
    assert Tensor(1.0).flatten().shape == (1,)


@given(x=kink_free(shapes(max_side=3)), data=st.data())
def test_transpose(xp, x, data):
    axes = data.draw(st.permutations(range(x.ndim)))
    axes = [axis - x.ndim if data.draw(st.booleans()) else axis for axis in axes]  # from the end, too
    x = xp.asarray(x)
    xp.testing.assert_array_equal(Tensor(x).transpose(*axes).data, x.transpose(axes))
    check_op(lambda x: x.transpose(tuple(axes)), x)


@given(x=kink_free(shapes(max_side=3)))
def test_transpose_reverses_by_default(xp, x):
    x = xp.asarray(x)
    xp.testing.assert_array_equal(Tensor(x).T.data, x.T)
    check_op(lambda x: x.T, x)


@given(x=kink_free(shapes()), data=st.data())
def test_getitem_with_basic_indices(xp, x, data):
    index = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True))
    xp.testing.assert_array_equal(Tensor(xp.asarray(x))[index].data, x[index])
    check_op(lambda x: x[index], xp.asarray(x))


@given(x=kink_free(shapes()), data=st.data())
def test_getitem_with_integer_arrays(xp, x, data):
    index = data.draw(hnp.integer_array_indices(x.shape, result_shape=hnp.array_shapes(max_dims=2, max_side=5)))
    xp.testing.assert_array_equal(Tensor(xp.asarray(x))[tuple(map(xp.asarray, index))].data, x[index])
    check_op(lambda x: x[tuple(map(xp.asarray, index))], xp.asarray(x))


@given(x=kink_free(shapes(max_dims=3)), data=st.data())
def test_getitem_with_masks(xp, x, data):
    mask = xp.asarray(data.draw(hnp.arrays(bool, x.shape)))
    check_op(lambda x: x[mask], xp.asarray(x))


def test_getitem_adds_up_elements_selected_twice(xp):
    x = Tensor(xp.zeros((3, 2)), requires_grad=True)
    x[xp.asarray([0, 2, 0, 0])].backward(xp.asarray([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
    assert x.grad.tolist() == [[13, 16], [0, 0], [3, 4]]
    for index in ([1, 1], Tensor([1, 1]), (np.array([1, 1]), slice(None)), ((1, 1), slice(None))):
        x = Tensor(np.zeros((3, 2)), requires_grad=True)
        x[index].backward(np.ones((2, 2)))
        assert x.grad.tolist() == [[0, 0], [2, 2], [0, 0]]


@given(x=kink_free(shapes(max_side=3)), data=st.data())
def test_pad(xp, x, data):
    widths = [data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in x.shape]
    x = xp.asarray(x)
    xp.testing.assert_array_equal(F.pad(Tensor(x), widths).data, xp.pad(x, widths))
    check_op(lambda x: F.pad(x, widths), x)


@given(shape=shapes(max_side=3), data=st.data())
def test_concatenate(xp, shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    arrays = []
    for seed in range(data.draw(st.integers(1, 3))):
        own = list(shape)
        own[axis] = data.draw(st.integers(1, 3))
        arrays.append(xp.asarray(kink_free_array(tuple(own), seed)))
    xp.testing.assert_array_equal(
        F.concatenate([Tensor(a) for a in arrays], axis).data, xp.concatenate(arrays, axis=axis)
    )
    check_op(lambda *xs: F.concatenate(xs, axis), *arrays)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: F.pad(x, [(1, 1)]), ValueError, r"pad: widths .* do not fit shape \(2, 3\)"),
        (lambda x: F.pad(x, [(1, 1), (0, -1)]), ValueError, "pad: widths"),
        (lambda x: F.concatenate([]), ValueError, "concatenate: expected at least one tensor, got none"),
        (lambda x: x.transpose(0, 3), ValueError, r"axis 3 is out of range for shape \(2, 3\)"),
        (lambda x: F.concatenate([x, x], axis=2), ValueError, r"axis 2 is out of range for shape \(2, 3\)"),
        (lambda x: F.concatenate([x, x], axis=-3), ValueError, "axis -3 is out of range"),
        (lambda x: x.transpose(0), ValueError, r"axes \(0,\) are not an order of the axes of shape \(2, 3\)"),
        (lambda x: x.transpose(0, 0), ValueError, r"transpose: axes \(0, 0\) are not an order"),
        (lambda x: x.reshape(4), ValueError, "reshape"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make(Tensor(np.ones((2, 3))))
