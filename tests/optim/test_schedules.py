"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from minires.optim import schedules


def test_constant():
    assert [schedules.constant(0.3)(step) for step in (0, 10**6)] == [0.3, 0.3]


def test_step_divides_at_the_milestones():
    schedule = schedules.step(1.0, milestones=(10, 20))
    assert [schedule(s) for s in (0, 9, 10, 19, 20, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_warms_up_and_ends_at_zero():
    schedule = schedules.cosine(1.0, total_steps=110, warmup_steps=10)
    assert [schedule(s) for s in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
    assert schedule(10) == pytest.approx(1.0)
    assert schedule(60) == pytest.approx(0.5)
    assert schedule(110) == pytest.approx(0.0)
    assert schedule(1000) == pytest.approx(0.0)  # a run that goes on stays there


def test_one_cycle_peaks_where_it_says():
    schedule = schedules.one_cycle(0.2, total_steps=100, warmup=0.25)
    rates = [schedule(s) for s in range(101)]
    assert max(rates) == rates[25] == 0.2
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[100] == 0


@pytest.mark.parametrize("name", schedules.NAMES)
@pytest.mark.parametrize("total_steps", [1, 2, 7, 1000])
def test_all_are_positive_and_bounded(name, total_steps):
    schedule = schedules.build(name, 0.1, total_steps)
    assert all(0 < schedule(s) <= 0.1 for s in range(total_steps))


def test_the_first_step_has_not_reached_a_milestone():
    for total_steps in (1, 2, 3):
        assert schedules.build("step", 0.1, total_steps)(0) == 0.1
    assert [schedules.build("step", 1.0, 64_000)(s) for s in (31_999, 32_000, 47_999, 48_000)] == pytest.approx(
        [1, 0.1, 0.1, 0.01]
    )


@pytest.mark.parametrize("warmup", [-0.1, 5.0])
def test_a_warm_up_longer_than_all(warmup):
    with pytest.raises(ValueError, match=f"warmup is {warmup}, expected a share of the steps"):
        schedules.one_cycle(0.1, 10, warmup)


def test_unknown_name():
    with pytest.raises(ValueError, match="'linear' is unknown, expected one of constant, step, cosine, one-cycle"):
        schedules.build("linear", 0.1, 10)
