"""Learning-rate schedules."""

import pytest

from diffgan.training.lr_schedules import scaled_from, warmup_cooldown, warmup_cosine


def test_cosine_rises_peaks_and_ends_at_zero():
    factor = warmup_cosine(10, 110)
    assert factor(0) == 0.1 and factor(10) == 1 and factor(60) == pytest.approx(0.5) and factor(110) == 0


def test_cooldown_is_constant_between_its_ramps():
    factor = warmup_cooldown(10, 20, 100)
    assert factor(0) == 0.1 and factor(9) == factor(50) == factor(80) == 1
    assert factor(90) == 0.5 and factor(100) == factor(120) == 0


def test_schedule_is_scaled_from_a_point_on():
    factor = scaled_from(50, 0.5, warmup_cooldown(10, 20, 100))
    assert factor(9) == factor(49) == 1 and factor(50) == factor(80) == 0.5 and factor(90) == 0.25
