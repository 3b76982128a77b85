"""A training of a given number of seconds: its learning rate, its end, and what it refuses."""

import time

import pytest

from diffgan.errors import UserError
from diffgan.glyphs.time_budget import TimeBudget
from diffgan.training.lr_schedules import warmup_cooldown


def test_at_constant_speed_the_schedule_is_that_of_as_many_steps():
    now = [0.0]
    budget = TimeBudget(50.0, clock=lambda: now[0])
    factor, expected = budget.schedule(10, 0.25), warmup_cooldown(10, 25, 100)
    assert factor(0) == expected(0) and budget.share == 0  # before the start
    now[0] = 7.0
    budget.start()
    for step in range(101):
        now[0] = 7.0 + step / 2  # two steps a second
        assert factor(step) == pytest.approx(expected(step), abs=1e-9)
    assert budget.share == 1 and factor(101) == 0
    now[0] += 1
    assert budget.share > 1 and factor(102) == 0


def test_a_slow_machine_reaches_the_same_end_in_fewer_steps():
    now = [0.0]
    budget = TimeBudget(50.0, clock=lambda: now[0])
    budget.start()
    factor = budget.schedule(2, 0.5)
    rates = []
    for step in range(11):
        now[0] = 5.0 * step
        rates.append(factor(step))
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_without_a_cooldown_the_rate_stays():
    budget = TimeBudget(10.0, clock=lambda: 0.0)
    budget.start()
    assert budget.schedule(0, 0.0)(5) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_budget_must_be_positive(seconds):
    with pytest.raises(UserError, match="seconds"):
        TimeBudget(seconds)


def test_the_clock_is_that_of_the_machine():
    budget = TimeBudget(1000.0)
    budget.start()
    time.sleep(0.01)
    assert 0 < budget.share < 0.5
