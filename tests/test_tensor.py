"""The engine: what backward sums, what it must not write to, what it frees."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

import minires as mr
import minires.functional as F
from minires import Tensor
from minires.testing import check_op, kink_free_array


def leaf(xp, *shape: int, seed: int = 0) -> Tensor:
    return Tensor(xp.asarray(kink_free_array(shape, seed)), requires_grad=True)


# Values used more than once: gradients add up. gradcheck's random cotangent would not forgive a lost summand.


def test_residual_block_whose_input_is_used_three_times(xp):
    # The shape of a ResNet block: the input goes into two convolutions (a branch and a projection) and is added.
    def block(x, w1, w2):
        x = x * 2  # as in a network, the block's input is no leaf: its three gradients meet on the tape
        branch = F.conv2d(F.relu(F.conv2d(x, w1, padding=1)), w2, padding=1)
        return branch + F.conv2d(x, w2, padding=1) + x

    arrays = [kink_free_array(shape, i) for i, shape in enumerate([(2, 4, 3, 2), (3, 3, 2, 2), (3, 3, 2, 2)])]
    check_op(block, *map(xp.asarray, arrays))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: x + x, lambda x: 2 + 0 * x),
        (lambda x: x * x, lambda x: 2 * x),
        (lambda x: x - x, lambda x: 0 * x),
        (lambda x: x / x, lambda x: 0 * x),
        (lambda x: x + x + x, lambda x: 3 + 0 * x),
        (lambda x: x * x * x * x, lambda x: 4 * x**3),
        (lambda x: (x + x) * (x + x), lambda x: 8 * x),
        (lambda x: F.concatenate([x, x, x]).reshape(3, 4).sum(axis=0), lambda x: 3 + 0 * x),
    ],
)
def test_reuse(xp, fn, expected):
    check_op(fn, xp.asarray(kink_free_array((4,))))
    check_op(lambda x: fn(x * 2), xp.asarray(kink_free_array((4,))))  # the same where x is no leaf
    x, dy = leaf(xp, 4), xp.asarray(kink_free_array((4,), 1))
    fn(x).backward(dy)
    xp.testing.assert_allclose(x.grad, expected(x.data) * dy, rtol=1e-12, atol=1e-12)


def test_diamonds(xp):
    def three_diamonds(x):  # 2 paths each: 8 paths, but every node must run once only
        for _ in range(3):
            x = x.exp() + x * 2
        return x

    check_op(three_diamonds, xp.asarray(kink_free_array((3,)) / 4))
    calls = []

    def counted(x):
        def backward(dy):
            calls.append(1)
            return (dy,)

        return Tensor.from_op(x.data, (x,), backward)

    x = y = leaf(xp, 3)
    for _ in range(20):  # 2**20 paths
        y = counted(y)
        y = y + y
    y.backward(xp.ones(3))
    assert len(calls) == 20
    xp.testing.assert_array_equal(x.grad, xp.full(3, 2.0**20))


def test_a_value_with_uses_of_different_depth(xp):
    # x is used at once and 3 operations later: its node must wait for both gradients
    check_op(lambda a: (lambda x: x + (x * x).exp().sqrt() * x)(a * 2), xp.asarray(kink_free_array((3,)) / 4))


@pytest.mark.parametrize("op", [lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b, lambda a, b: a / b])
def test_broadcasting_3_1_with_1_4(xp, op):
    check_op(op, xp.asarray(kink_free_array((3, 1))), xp.asarray(kink_free_array((1, 4), 1)))


def test_slices(xp):
    check_op(lambda x: (x[1:], x[:-1] * x[1:], x[:, ::2], x[0]), xp.asarray(kink_free_array((3, 4))))
    x = leaf(xp, 5)
    (x[1:4] + x[1:4]).backward(xp.asarray([1.0, 10.0, 100.0]))
    assert x.grad.tolist() == [0, 2, 20, 200, 0]


def test_backward_twice_accumulates(xp):
    x, dy = leaf(xp, 3), xp.asarray(kink_free_array((3,), 1))
    (x * x).backward(dy)
    once = x.grad.copy()
    (x * x).backward(dy)
    xp.testing.assert_allclose(x.grad, 2 * once)
    x.zero_grad()
    assert x.grad is None


# Which tensors take part


def test_no_grad():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with mr.no_grad():
        assert not mr.is_grad_enabled()
        y = x * 2
        with mr.no_grad():
            pass
        assert not mr.is_grad_enabled()  # the inner block does not switch recording back on
    assert mr.is_grad_enabled()
    assert not y.requires_grad
    assert y.node is None
    with pytest.raises(RuntimeError, match="does not depend on any tensor with requires_grad"):
        y.backward(np.ones(2))
    with pytest.raises(KeyError), mr.no_grad():
        raise KeyError
    assert mr.is_grad_enabled()


def test_no_grad_is_of_one_thread():
    inside, seen = threading.Event(), []

    def other():
        inside.wait(5)
        seen.append(mr.is_grad_enabled())

    thread = threading.Thread(target=other)
    thread.start()
    with mr.no_grad():
        inside.set()
        thread.join()
    assert seen == [True]


def test_detach_stops_the_gradient():
    x = Tensor([2.0, 3.0], requires_grad=True)
    detached = x.detach()
    assert detached.data is x.data
    assert not detached.requires_grad
    (x * detached).backward(np.ones(2))
    assert x.grad.tolist() == [2, 3]  # not 2x: the second factor is a constant


def test_only_leaves_that_ask_for_a_gradient_get_one():
    x, constant = Tensor([1.0], requires_grad=True), Tensor([5.0])
    y = x * constant
    z = y + constant
    z.backward()
    assert x.grad.tolist() == [5]
    assert constant.grad is None
    assert y.grad is None


def test_to_the_same_device_is_the_same_tensor():
    x = Tensor([1.0])
    assert x.to("cpu") is x


# Arrays that others hold are not written to


def test_gradients_do_not_share_memory_with_each_other_or_with_the_callers():
    a, b = Tensor(np.zeros(3), requires_grad=True), Tensor(np.zeros(3), requires_grad=True)
    dy = np.array([1.0, 2.0, 3.0])
    (a + b).backward(dy)  # add hands dy itself to both
    assert not np.shares_memory(a.grad, b.grad)
    assert not np.shares_memory(a.grad, dy)
    a.grad += 100
    assert b.grad.tolist() == dy.tolist() == [1, 2, 3]
    a.zero_grad()
    a.backward(dy)  # a leaf alone
    assert not np.shares_memory(a.grad, dy)


def test_shared_gradients_are_not_written_to():
    # Both inputs of `+` get one array; the left one then gets a second gradient, which must not be added in place.
    x = Tensor(np.ones(2), requires_grad=True)
    left, right = x * 2, x * 3
    handed = []

    def spy(dy):
        handed.append((dy, dy.copy()))
        return (dy,)

    right_spied = Tensor.from_op(right.data, (right,), spy)
    (left + right_spied + left + left).backward(np.array([1.0, 10.0]))
    assert all((dy == copy).all() for dy, copy in handed)
    assert x.grad.tolist() == [9, 90]


def test_a_read_only_gradient_from_sum_can_be_added_to(xp):
    check_op(lambda x: (x * 2).sum() + (x * 3).sum() + (x * x).sum(), xp.asarray(kink_free_array((2, 3))))

    def twice_summed(x):  # both gradients of y are read-only broadcast views
        y = x * 2
        return y.sum() + y.sum() + y.sum(axis=0).sum()

    check_op(twice_summed, xp.asarray(kink_free_array((2, 3))))


def test_the_first_gradient_of_a_parameter_goes_into_its_buffer():
    parameter = mr.nn.Parameter(np.ones(2))
    buffer = parameter.grad_buffer = np.full(2, 7.0)
    (parameter * 3).backward(np.ones(2))
    assert parameter.grad is buffer
    assert buffer.tolist() == [3, 3]
    (parameter * 3).backward(np.ones(2))
    assert buffer.tolist() == [6, 6]


# The graph and its memory


def test_second_backward_through_a_freed_graph_is_an_error():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        y.backward()
    shared = x * x
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="'multiply' was freed"):
        (shared + 1).backward(np.ones(2))


def test_10_000_operations_forward_and_backward():
    x = y = Tensor(np.ones(1), requires_grad=True)
    for _ in range(10_000):
        y = y + 1.0
    y.backward()
    assert y.item() == 10_001
    assert x.grad.item() == 1


def test_100_000_operations_dropped_without_backward():
    # Nodes hold each other in a chain; dropping the last one must not recurse until the C stack overflows.
    y = Tensor(np.ones(1), requires_grad=True)
    y = y + 1.0
    first = weakref.ref(y.node.backward)
    for _ in range(100_000):
        y = y + 1.0
    assert first() is not None
    del y
    assert first() is None


class Alive:
    """Counts those of the arrays made here that still exist."""

    def __init__(self) -> None:
        self.references: list[weakref.ref] = []

    def array(self, value: float = 1.0) -> np.ndarray:
        array = np.full(4, value)
        self.references.append(weakref.ref(array))
        return array

    def count(self) -> int:
        return sum(reference() is not None for reference in self.references)


@pytest.fixture
def alive():
    gc.disable()  # reference counts alone must free everything: the collector comes too late for large arrays
    yield Alive()
    gc.enable()


def test_memory_is_freed_while_backward_runs(alive):
    counts = []

    def op(x):
        saved = alive.array()  # what a layer keeps for its backward

        def backward(dy):
            counts.append(alive.count())
            return (dy * saved,)

        return Tensor.from_op(x.data * 1.0, (x,), backward)

    x = y = Tensor(np.ones(4), requires_grad=True)
    for _ in range(10):
        y = op(y)
    assert alive.count() == 10
    y.backward(np.ones(4))
    assert counts == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert alive.count() == 0
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_outputs_and_gradients_of_inner_nodes_are_freed(alive):
    most = []

    def op(x):
        def backward(dy):
            most.append(alive.count())
            assert x.size == 4  # needs its input, like a product
            return (alive.array(2.0),)

        return Tensor.from_op(alive.array(), (x,), backward)

    x = Tensor(np.ones(4), requires_grad=True)
    loss = op(op(op(x)))
    assert alive.count() == 3  # the outputs
    loss.backward(np.ones(4))
    # outputs 1, 2, 3; then outputs 1, 3 and the gradient of 2; then output 3 and the gradient of 1
    assert most == [3, 3, 2]
    assert alive.count() == 1  # the last output, which `loss` holds; the leaf's gradient is a copy
    del loss
    assert alive.count() == 0


def test_the_tape_holds_no_array_that_no_backward_needs(alive):
    def op(x):
        return Tensor.from_op(alive.array(), (x,), lambda dy: (dy,))

    x = Tensor(np.ones(4), requires_grad=True)
    loss = op(op(op(x)) + 1.0)
    assert alive.count() == 1  # the last output, which `loss` holds
    loss.backward(np.full(4, 3.0))
    assert (x.grad == 3).all()


def test_an_inner_value_that_wants_no_gradient_passes_none_on():
    w, v = (Tensor(np.full(2, value), requires_grad=True) for value in (3.0, 5.0))
    y = w * 2.0
    y.requires_grad = False
    (y * v).sum().backward()
    assert w.grad is None
    assert (v.grad == 6).all()


def test_an_operation_may_return_a_number():
    x = Tensor(np.ones(3), requires_grad=True)
    y = Tensor.from_op(float(x.data.sum()), (x,), lambda dy: (np.full(3, dy),))
    y.backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_a_graph_that_is_dropped_is_freed_without_the_collector(alive):
    x = Tensor(alive.array(), requires_grad=True)
    y = F.relu(x * x + x)
    assert alive.count() == 1
    del x, y
    assert alive.count() == 0  # no reference cycles in the tape


# Construction, conversions and errors


def test_dtypes():
    assert Tensor(1.5).dtype == Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor(np.zeros(2)).dtype == np.float64
    assert Tensor([1, 2]).dtype.kind == "i"
    x = Tensor(np.ones(2, np.float32))
    for y in [x * 2, 2 * x, x * 2.5, 1 - x, 1 / x, x + np.float64(3), x**2, x / 3, -x, x @ x, x.mean(), x.sum()]:
        assert y.dtype == np.float32


def test_numpy_arrays_on_the_left_give_tensors():
    x, array = Tensor(np.array([[1.0, 2.0]]), requires_grad=True), np.array([[3.0, 4.0]])
    for y, expected in [(array + x, [[4, 6]]), (array - x, [[2, 2]]), (array * x, [[3, 8]]), (array / x, [[3, 2]])]:
        assert isinstance(y, Tensor)
        assert y.requires_grad
        assert y.data.tolist() == expected
    assert (array.T @ x).data.tolist() == [[3, 6], [4, 8]]


def test_conversions():
    x = Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
    assert x.shape == (2, 2)
    assert (x.ndim, x.size, len(x), x.device) == (2, 4, 2, "cpu")
    assert x.numpy() is x.data
    assert float(x[0, 1]) == x[0, 1].item() == 2
    assert [row.data.tolist() for row in x] == [[1, 2], [3, 4]]
    assert "requires_grad=True" in repr(x)
    assert "made by multiply" in repr(x * x)
    assert Tensor(x).data is x.data
    with pytest.raises(TypeError, match="len"):
        len(Tensor(1.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Tensor([1, 2], requires_grad=True), TypeError, "requires_grad needs floating-point data, got int64"),
        (lambda: Tensor(np.array(["a"])), TypeError, "Tensor: data has dtype <U1, expected numbers"),
        (lambda: Tensor([1.0, 2.0], requires_grad=True).backward(), RuntimeError, r"give a gradient of shape \(2,\)"),
        (lambda: Tensor([1.0]).backward(), RuntimeError, "does not depend on any tensor with requires_grad"),
        (
            lambda: Tensor([1.0, 2.0], requires_grad=True).backward(np.ones(3)),
            ValueError,
            r"gradient has shape \(3,\), the tensor has \(2,\)",
        ),
        (lambda: Tensor([1.0]).to("tpu"), ValueError, "'tpu' is unknown, expected 'cpu' or 'cuda'"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_gradient_of_the_wrong_shape_names_the_operation():
    def lopsided(x):
        def backward(dy):
            return (dy[:1],)

        return Tensor.from_op(x.data, (x,), backward)

    x = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"lopsided.*shape \(1,\) for an input of shape \(3,\)"):
        lopsided(x).backward(np.ones(3))


@pytest.mark.parametrize("make", [lambda g: g, lambda g: Tensor(g), lambda g: g.tolist()])
def test_the_given_gradient_takes_the_dtype_of_the_tensor(make):
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    (x * 2).backward(make(np.array([1.0, 2.0])))
    assert x.grad.dtype == np.float32
    assert x.grad.tolist() == [2, 4]


def test_the_list_given_to_concatenate_may_change_afterwards():
    parts = [Tensor([1.0], requires_grad=True), Tensor([2.0], requires_grad=True)]
    first = parts[0]
    y = F.concatenate(parts)
    parts.clear()
    y.backward(np.array([3.0, 4.0]))
    assert first.grad.tolist() == [3]


@pytest.mark.gpu
def test_moving_between_devices():
    x = Tensor(np.ones(3), requires_grad=True)
    y = (x.to("cuda") * 2).to("cpu") + x
    assert y.device == "cpu"
    y.backward(np.array([1.0, 2.0, 3.0]))
    assert isinstance(x.grad, np.ndarray)
    assert x.grad.tolist() == [3, 6, 9]


# What people write who come from NumPy or PyTorch: right, or an error; never something else in silence.


def operation(inputs: list[Tensor], gradients) -> Tensor:
    def backward(dy):
        return gradients(dy)

    return Tensor.from_op(sum(x.data for x in inputs), inputs, backward)


@pytest.mark.parametrize(
    ("inputs", "gradients", "found"),
    [
        (2, lambda dy: (dy,), "1 gradients for 2 inputs"),
        (1, lambda dy: (dy, dy, dy), "3 gradients for 1 inputs"),
        (1, lambda dy: None, "None, expected a tuple, one gradient per input"),
        (1, lambda dy: 2 * dy, "a single ndarray, expected a tuple, one gradient per input"),
        (1, lambda dy: (Tensor(dy),), "a gradient of type Tensor, expected an array"),
        (2, lambda dy: (dy, 1.0), "a gradient of type float, expected an array"),
    ],
)
def test_what_backward_returns_is_looked_at(inputs, gradients, found):
    y = operation([Tensor([1.0], requires_grad=True) for _ in range(inputs)], gradients)
    with pytest.raises(RuntimeError, match=f"^backward of operation returned {found}"):
        y.backward(np.ones(1))


def test_gradients_may_come_as_a_list_with_none_in_it():
    a, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    operation([a, b], lambda dy: [dy, None]).backward(np.ones(1))
    assert a.grad == 1
    assert b.grad is None


@pytest.mark.parametrize(
    "name", ["relu", "exp", "sqrt", "negative", "flatten", "transpose", "sum", "mean", "max", "tanh", "abs", "softmax"]
)
def test_an_array_is_no_input(name):
    with pytest.raises(TypeError, match=rf"^{name}: input is of type ndarray, expected a Tensor: wrap it, Tensor\(x\)"):
        getattr(F, name)(np.ones((2, 3), np.float32))


@pytest.mark.parametrize("value", [None, "1.5", {}])
def test_what_is_no_number_is_no_operand(value):
    """NumPy would take None for NaN, and a text for the number in it."""
    for operator in (F.add, F.multiply, lambda a, b: a == b, lambda a, b: b - a):
        with pytest.raises(TypeError, match="expected a Tensor, an array or a number beside a Tensor, got "):
            operator(Tensor([1.0]), value)


def test_a_tensor_is_an_array_to_numpy(any_array):
    x = Tensor(any_array, requires_grad=True)
    array = np.asarray(x)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    assert np.asarray(x, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(x), array)
    assert [row.shape for row in x] == [(3,), (3,)]


@pytest.fixture(params=["numpy", "simulated"])
def any_array(request):
    """float32 [[0, 1, 2], [3, 4, 5]], on the CPU and on the (simulated) GPU."""
    if request.param == "simulated":
        request.getfixturevalue("gpu")
        import cupy

        return cupy.arange(6, dtype="float32").reshape(2, 3)
    return np.arange(6, dtype=np.float32).reshape(2, 3)


def test_an_image_can_be_shown():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, axes = plt.subplots()
    shown = axes.imshow(Tensor(np.full((4, 5, 3), 0.5, np.float32)))
    assert shown.get_array().shape == (4, 5, 3)
    plt.close(figure)


def test_comparisons_are_element_by_element(xp):
    x, other = Tensor(xp.asarray([1.0, 2.0, 3.0]), requires_grad=True), xp.asarray([1.0, 0.0, 5.0])
    for found, expected in [
        (x == other, [True, False, False]), (x != other, [False, True, True]), (x == 2, [False, True, False]),
        (x < other, [False, False, True]), (x <= other, [True, False, True]), (x > Tensor(other), [False, True, False]),
        (x >= 2.5, [False, False, True]), (other == x, [True, False, False]), (x > 1, [False, True, True]),
    ]:  # fmt: skip
        assert isinstance(found, Tensor)
        assert found.dtype == bool
        assert not found.requires_grad
        assert found.data.tolist() == expected
    assert (x == other).sum().item() == 1
    assert (x == other).mean().item() == pytest.approx(1 / 3)
    assert (Tensor(np.array([44, 7], np.uint8)) == 300).data.tolist() == [False, False]  # 300 is not 44
    with pytest.raises(ValueError, match="broadcast"):
        x == Tensor(xp.zeros(2))  # noqa: B015


def test_tensors_are_keys_by_identity():
    x, y = Tensor([1.0]), Tensor([1.0])
    assert len({x, y, x}) == 2
    assert {x: 1}[x] == 1
    assert x in [y, x]


def test_the_truth_of_a_tensor():
    assert not Tensor(0.0)
    assert not Tensor([[0.0]])
    assert Tensor([2.0])
    for shape in ((2,), (0,)):
        with pytest.raises(TypeError, match=rf"the truth of a tensor of shape \({shape[0]},\) is ambiguous"):
            bool(Tensor(np.zeros(shape)))
    with pytest.raises(TypeError, match="scalar tensor"):
        list(Tensor(1.0))


@pytest.mark.parametrize(
    ("symbol", "change"),
    [("-=", "w -= 0.5"), ("+=", "w += 0.5"), ("*=", "w *= 0.5"), ("/=", "w /= 0.5")],
)
def test_a_weight_is_not_replaced_by_an_assignment(symbol, change):
    names = {"w": Tensor([4.0, 8.0], requires_grad=True)}
    weight, array = names["w"], names["w"].data
    with pytest.raises(RuntimeError, match=rf"w \{symbol} ...: .* write w.data \{symbol} ..., or .*no_grad"):
        exec(change, names)
    expected = eval(change.replace("w ", "array ").replace("=", ""), {"array": array.copy()})
    with mr.no_grad():
        exec(change, names)
    assert names["w"] is weight
    assert weight.data is array
    np.testing.assert_array_equal(array, expected)
    assert weight.requires_grad


def test_the_first_loop_of_every_tutorial():
    w = Tensor([3.0], requires_grad=True)
    for _ in range(50):
        ((w - 1) ** 2).sum().backward()
        with mr.no_grad():
            w -= 0.1 * w.grad
        w.zero_grad()
    assert w.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("change", ["w **= 2", "w @= m"])
def test_the_other_assignments(change):
    names = {"w": mr.nn.Parameter(np.float32([[1, 2], [3, 4]])), "m": np.eye(2, dtype=np.float32)}
    with pytest.raises(RuntimeError, match="would make a new tensor"):
        exec(change, names)


def test_a_frozen_parameter_stays_one():
    """As where an average of weights is kept: a *= 0.9; a += 0.1 * b."""
    layer = mr.nn.Linear(2, 2).requires_grad_(False)
    weight, before = layer.weight, layer.weight.numpy().copy()
    with mr.no_grad():
        layer.weight *= 0.5
    assert layer.weight is weight
    np.testing.assert_array_equal(weight.data, before / 2)


def test_what_is_no_weight_may_be_assigned_to():
    """A loss that is added up, with its gradient."""
    w = Tensor([3.0], requires_grad=True)
    loss = Tensor(0.0)
    for factor in (1.0, 2.0):
        loss += (w * factor).sum()
    loss.backward()
    assert w.grad == 3


def test_every_operator_is_declared_where_editors_look():
    """tensor.py names Operators as the base for type checkers; all of it is on Tensor."""
    from minires.functional.operators import Operators

    public = [name for name in vars(Operators) if callable(vars(Operators)[name]) or name == "T"]
    assert "__and__" in public
    assert {"__add__", "__rsub__", "__eq__", "__isub__", "sum", "reshape", "T"} <= set(public)
    assert all(vars(Tensor)[name] is vars(Operators)[name] for name in public)


def test_a_list_of_tensors_would_lose_their_gradients():
    x = Tensor([1.0], requires_grad=True)
    for make in (lambda: Tensor([x, x]), lambda: x * [x, x], lambda: Tensor([[1.0], (x,)]), lambda: x * [[x]]):
        with pytest.raises(TypeError, match=r"data is a list of tensors, expected numbers; F.stack\(tensors\)"):
            make()


@pytest.mark.parametrize(
    "call",
    [lambda x: np.where(x.data > 0, x, 0), lambda x: np.stack([x, x]), np.mean, np.linalg.norm, lambda x: np.dot(x, x)],
)
def test_numpy_does_not_take_a_gradient_away(call):
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"^np.\w+: no gradient would flow through NumPy"):
        call(x)
    expected = call(Tensor(x.data))  # without a gradient it is an array like any other
    assert not isinstance(expected, Tensor)
    with mr.no_grad():
        np.testing.assert_array_equal(call(x), expected)


def test_a_loss_can_be_printed_and_masks_combined():
    x = Tensor([1.0, 2.0, 3.0])
    assert f"{x.mean():.3f}" == "2.000"
    assert f"{x}" == str(x)
    assert ((x > 1) & (x < 3)).data.tolist() == [False, True, False]
    assert ((x > 2) | (x < 2)).data.tolist() == [True, False, True]
    assert (~(x > 1)).data.tolist() == [True, False, False]


def test_spellings_of_pytorch():
    x = Tensor([1.0])
    with pytest.raises(AttributeError, match=r"Tensor has no attribute 'view'; write x.reshape\(...\)"):
        x.view(1, 1)
    with pytest.raises(AttributeError, match=r"Parameter has no attribute 'nonsense'$"):
        _ = mr.nn.Parameter(np.ones(1)).nonsense
    assert not hasattr(x, "unsqueeze")
    assert getattr(x, "cuda", None) is None
