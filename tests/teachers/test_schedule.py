"""Noise schedules: the table of DDIM, from the scheduler of any pipeline."""

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler

from diffgan.errors import UserError
from diffgan.teachers.schedule import SCHEDULER_SETTINGS, DDIMSchedule, schedule_for

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def ddim(**changes):
    return DDIMScheduler(**(SCALED_LINEAR | SCHEDULER_SETTINGS | changes))


@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_and_sigma_are_those_that_diffusers_adds_noise_with(zero_snr):
    scheduler = ddim(rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction")
    schedule = schedule_for(scheduler)
    x, eps = torch.randn(2, 1, 4, 8, 8)
    for t in (0, 500, schedule.last_timestep):
        noisy = scheduler.add_noise(x, eps, torch.tensor([t]))
        torch.testing.assert_close(schedule.alpha(t) * x + schedule.sigma(t) * eps, noisy)
    assert schedule.num_timesteps == 1000 and schedule.last_timestep == 999
    assert (schedule.alpha(999) == 0) == zero_snr


def test_the_schedule_of_a_pipeline_is_read_from_its_own_scheduler():
    """Whatever the class, the table stays and the settings are those of teacher, student and export."""
    own = EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading", prediction_type="v_prediction")
    schedule = DDIMSchedule.from_pipeline(own)
    torch.testing.assert_close(schedule.scheduler.alphas_cumprod, own.alphas_cumprod)
    assert schedule.prediction_type == "v_prediction"
    assert {name: schedule.scheduler.config[name] for name in SCHEDULER_SETTINGS} == SCHEDULER_SETTINGS


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_no_solver_can_take_is_refused(steps):
    with pytest.raises(UserError, match=f"steps: {steps} is not between 1 and the teacher's 1000 timesteps"):
        schedule_for(ddim()).check_steps(steps)
    schedule_for(ddim()).check_steps(1000)


def test_a_scheduler_of_another_kind_is_refused():
    with pytest.raises(UserError, match="a EDMEulerScheduler is not supported; supported are DDIMScheduler"):
        schedule_for(EDMEulerScheduler())


def test_a_pipeline_trained_on_another_schedule_is_refused():
    schedule = schedule_for(ddim())
    with pytest.raises(UserError, match="a EDMEulerScheduler without DDIMScheduler's table of betas"):
        schedule.check(EDMEulerScheduler())
    with pytest.raises(UserError, match="a DDIMScheduler without DDIMScheduler's table of betas"):
        schedule.check(DDIMScheduler(beta_start=0.001))
    with pytest.raises(UserError, match="prediction_type is 'flow'"):
        schedule_for(ddim(prediction_type="flow")).check(ddim())
    zero = ddim(rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match="rescale_betas_zero_snr cannot be used with epsilon"):
        schedule_for(zero).check(zero)
