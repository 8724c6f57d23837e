"""Optimisers: groups, flat buffers, states, errors. The update rules are held to PyTorch in test_against_torch.py."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from minires import nn, optim
from minires.optim import clip_grad_norm

ALL = [(optim.SGD, {"lr": 0.1, "momentum": 0.9}), (optim.Adam, {}), (optim.AdamW, {})]


def make(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def give_gradients(params, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    for p in params:
        p.zero_grad()
        p.accumulate_grad(rng.standard_normal(p.shape).astype(np.float32))


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_parameters_and_gradients_are_views_of_flat_buffers(kind, options):
    params = make((3, 2), (4,))
    before = [p.data.copy() for p in params]
    optimizer = kind(params, **options)
    for p, old in zip(params, before):
        np.testing.assert_array_equal(p.data, old)
        assert np.shares_memory(p.data, optimizer.flat)
    give_gradients(params)
    assert all(np.shares_memory(p.grad, optimizer.flat_grad) for p in params)
    optimizer.step()
    assert all(np.abs(p.data - old).min() > 0 for p, old in zip(params, before))


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_gradients_from_before_the_optimiser_was_made_count(kind, options):
    early, late = make((3, 2), (4,)), make((3, 2), (4,))
    give_gradients(early)
    optimizers = kind(early, **options), kind(late, **options)
    assert all(np.shares_memory(p.grad, optimizers[0].flat_grad) for p in early)
    give_gradients(late)
    for optimizer in optimizers:
        optimizer.step()
    for p, q in zip(early, late):
        np.testing.assert_array_equal(p.data, q.data)


def test_first_adam_step_has_the_size_of_lr():
    (p,) = make((50,))
    old = p.data.copy()
    optimizer = optim.Adam([p], lr=1e-3)
    give_gradients([p])
    optimizer.step()
    np.testing.assert_allclose(np.abs(p.data - old), 1e-3, rtol=1e-2)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_a_parameter_without_gradient_is_left_alone(kind, options):
    """Also in the middle of the flat buffer, and with weight decay."""
    params = make((3,), (4,), (5,))
    optimizer = kind(params, weight_decay=0.1, **options)
    before = [p.data.copy() for p in params]
    give_gradients([params[0], params[2]])
    optimizer.step()
    assert not np.array_equal(params[0].data, before[0])
    np.testing.assert_array_equal(params[1].data, before[1])
    assert not np.array_equal(params[2].data, before[2])


def test_groups_have_settings_of_their_own():
    decayed, free = make((4,), (4,))
    optimizer = optim.SGD([{"params": [decayed]}, {"params": [free], "weight_decay": 0.0}], lr=0.5, weight_decay=0.2)
    before = decayed.data.copy(), free.data.copy()
    for p in (decayed, free):
        p.accumulate_grad(np.zeros(4, np.float32))
    optimizer.step()
    np.testing.assert_allclose(decayed.data, before[0] * (1 - 0.5 * 0.2), rtol=1e-6)
    np.testing.assert_array_equal(free.data, before[1])
    optimizer.lr = 0.25
    assert [group["lr"] for group in optimizer.groups] == [0.25, 0.25]


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_state_dict_continues_exactly(kind, options):
    def run(steps: int, optimizer, params, start: int) -> None:
        for i in range(start, start + steps):
            give_gradients(params, seed=i)
            optimizer.step()

    params = make((3, 2), (4,))
    optimizer = kind(params, **options)
    run(3, optimizer, params, 0)
    copies = [nn.Parameter(p.data.copy()) for p in params]
    resumed = kind(copies, **options)
    resumed.load_state_dict(optimizer.state_dict())
    run(3, optimizer, params, 3)
    run(3, resumed, copies, 3)
    for p, q in zip(params, copies):
        np.testing.assert_array_equal(p.data, q.data)


def test_load_state_dict_refuses_another_state_unchanged():
    params = make((3,))
    adam = optim.Adam(params)
    with pytest.raises(ValueError, match="the state holds"):
        adam.load_state_dict(optim.SGD(make((3,)), lr=0.1).state_dict())
    with pytest.raises(ValueError, match=r"mean has shape \(4,\), expected \(3,\)"):
        adam.load_state_dict(optim.Adam(make((4,))).state_dict())
    assert adam.steps == 0


@pytest.mark.parametrize("change", [{"lr": np.array([np.nan])}, {"steps": "x"}, {"mean": np.full(3, "x")}])
def test_load_state_dict_refuses_what_is_no_state_unchanged(change):
    adam = optim.Adam(make((3,)), lr=0.5)
    state = {**optim.Adam(make((3,))).state_dict(), "steps": 5}
    with pytest.raises(ValueError):  # noqa: PT011, NumPy's own words
        adam.load_state_dict({**state, **change})
    assert (adam.steps, adam.lr) == (0, 0.5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_an_optimiser_is_not_copied(copied):
    """The copy's flat buffer would not be what the copied parameters are views of: its steps would change nothing."""
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Adam: an optimiser cannot be copied or pickled"):
        copied((model, optim.Adam(model.parameters())))


def test_a_tensor_is_no_list_of_parameters():
    with pytest.raises(TypeError, match=r"SGD: got a Tensor, expected Parameters: model.parameters\(\)"):
        optim.SGD(nn.Linear(2, 2).weight, lr=0.1)


def test_a_replaced_array_is_noticed():
    model = nn.Linear(2, 2)
    optimizer = optim.Adam(model.parameters())
    model.weight.data = model.weight.data.copy()
    with pytest.raises(RuntimeError, match="got a new array after the optimiser was made"):
        optimizer.step()


def test_load_state_dict_of_a_model_keeps_the_views():
    model = nn.Linear(2, 3)
    optimizer = optim.Adam(model.parameters())
    model.load_state_dict(nn.Linear(2, 3).state_dict())
    assert np.shares_memory(model.weight.data, optimizer.flat)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.Adam([]), "no parameters"),
        (lambda: optim.Adam(make((2,)) * 2), "listed twice"),
        (lambda: optim.Adam(make((2,)), lr=-1), "lr is -1, expected a number >= 0"),
        (lambda: optim.Adam(make((2,)), lr=float("nan")), "lr is nan"),
        (lambda: optim.Adam(make((2,)), betas=(1.0, 0.9)), "betas are"),
        (lambda: optim.SGD(make((2,)), lr=0.1, nesterov=True), "needs a momentum"),
        (lambda: optim.SGD([{"params": make((2,)), "rate": 1}], lr=0.1), r"unknown settings \['rate'\]"),
        (lambda: optim.Adam([*make((2,)), nn.Parameter(np.zeros(2))]), "differ in device or dtype"),
        (lambda: clip_grad_norm(make((2,)), 0), "max_norm is 0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_clip_grad_norm():
    params = make((3,), (4,))
    for p in params:
        p.accumulate_grad(np.full(p.shape, 2.0, np.float32))
    norm = clip_grad_norm(params, 1.0)
    assert norm == pytest.approx(28**0.5)
    assert sum((p.grad**2).sum() for p in params) == pytest.approx(1.0)
    assert clip_grad_norm(params, 5.0) == pytest.approx(1.0)  # below the bound nothing is scaled
    assert sum((p.grad**2).sum() for p in params) == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_a_schedule_keeps_the_ratio_of_the_groups_rates(kind, options):
    """Discriminative rates: those of a pretrained body stay a hundredth of the new head's."""
    body, head = make((2,), (3,))
    optimizer = kind([{"params": [body], "lr": 1e-4}, {"params": [head], "lr": 1e-2}], **options)
    assert optimizer.lr == 1e-2
    for rate in (1e-3, 0.7, 0.0, 1e-2):  # from 0 as well, where a cycle ends
        optimizer.lr = rate
        assert optimizer.lr == rate
        assert [group["lr"] for group in optimizer.groups] == pytest.approx([rate / 100, rate])
    optimizer.groups[0]["lr"] = 1e-2  # changed by hand: the ratio is 1 from now on
    optimizer.lr = 0.5
    assert [group["lr"] for group in optimizer.groups] == [0.5, 0.5]
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"lr is {value}, expected a number >= 0"):
            optimizer.lr = value


@pytest.mark.parametrize(
    ("made", "steps", "expected"),
    [
        (
            (0.001, 0.1),
            [(1, 0.0), 0.1],
            (0.001, 0.0),
        ),  # freezing the head does not make the body a hundred times faster
        ((0.1, 0.01), [0.0, (1, 0.01), 0.1], (0.1, 0.01)),  # a second phase after a cycle that ended at 0
        ((0.1,), [(0, 0.02), 0.3], (0.3,)),
        ((0.1, 0.1), [(0, 0.2), (1, 0.4), 0.8], (0.4, 0.8)),  # all changed: a new beginning
    ],
)
def test_rates_changed_by_hand(made, steps, expected):
    optimizer = optim.SGD([{"params": make((2,)), "lr": lr} for lr in made], lr=1)
    for step in steps:
        if isinstance(step, tuple):
            optimizer.groups[step[0]]["lr"] = step[1]
        else:
            optimizer.lr = step
    assert [group["lr"] for group in optimizer.groups] == pytest.approx(expected)


def test_a_group_frozen_by_hand_stays_frozen_after_a_resume():
    first, second = (optim.SGD([{"params": make((2,)), "lr": lr} for lr in (0.1, 0.01)], lr=1) for _ in range(2))
    first.groups[1]["lr"] = 0.0
    second.load_state_dict(first.state_dict())
    first.lr = second.lr = 0.05
    assert [g["lr"] for g in second.groups] == [g["lr"] for g in first.groups] == [0.05, 0]


def test_a_group_with_rate_0_stays_there():
    body, head = make((2,), (3,))
    optimizer = optim.Adam([{"params": [body], "lr": 0.0}, {"params": [head]}])
    optimizer.lr = 0.3
    assert [group["lr"] for group in optimizer.groups] == [0.0, 0.3]


def test_a_resumed_optimiser_keeps_the_exact_ratio():
    def new():
        a, b, c = make((2,), (3,), (4,))
        return optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.3}, {"params": [c], "lr": 0.7}], lr=1)

    whole, resumed = new(), new()
    rates = [0.123, 0.0456, 0.0, 0.0078]
    for i, rate in enumerate(rates):
        whole.lr = rate
        if i == 2:
            resumed.load_state_dict(whole.state_dict())
    assert [group["lr"] for group in resumed.groups] == [0, 0, 0]
    resumed.lr = rates[-1]
    assert [g["lr"] for g in resumed.groups] == [g["lr"] for g in whole.groups]  # bit for bit


@pytest.mark.parametrize(("kind", "options"), ALL)
def test_repr(kind, options):
    text = repr(kind([{"params": make((2,), (3,)), "weight_decay": 0.5}, {"params": make((4,))}], **options))
    assert text.startswith(f"{kind.__name__}(lr=")
    assert "weight_decay=0.5" in text
    assert "params=2; lr=" in text
    assert len(text) < 250


def test_a_model_is_not_its_parameters():
    with pytest.raises(TypeError, match=r"Adam: got the Linear itself, expected model.parameters\(\)"):
        optim.Adam(nn.Linear(2, 2))
