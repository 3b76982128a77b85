"""The schedule of flow matching: one step, shifts, and what is refused."""

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffgan.errors import UserError
from diffgan.teachers.flow_schedule import EvenFlowSchedule, FlowSchedule
from diffgan.teachers.prediction import to_x0
from diffgan.teachers.registry import load_teacher
from tests.pipelines import saved, sd3


def test_one_step_from_pure_noise_is_z_minus_v():
    schedule = FlowSchedule.from_pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0))
    z, v = torch.randn(2, 2, 4, 8, 8).unbind()
    assert schedule.last_timestep == 1000 and schedule.alpha(1000) == 0 and schedule.sigma(250) == 0.25
    x0 = to_x0(v, z, schedule.alpha(1000), schedule.sigma(1000), schedule.prediction_type)
    assert torch.equal(x0, z - v)


def test_velocity_of_a_known_path_gives_back_its_end():
    """z_t = (1 - sigma) x0 + sigma eps and v = eps - x0, at any time."""
    schedule = FlowSchedule(FlowMatchEulerDiscreteScheduler())
    x0, eps = torch.randn(2, 2, 4, 8, 8).double().unbind()
    for t in (1, 400, 1000):
        alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
        found = to_x0(eps - x0, alpha * x0 + sigma * eps, alpha, sigma, "flow_prediction")
        torch.testing.assert_close(found, x0, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [FlowSchedule, EvenFlowSchedule])
def test_one_step_of_a_schedule_that_ends_at_a_terminal_sigma(kind):
    """diffusers divides zero by zero there; more steps end at it."""
    schedule = kind.from_pipeline(FlowMatchEulerDiscreteScheduler(shift_terminal=0.1))
    for steps, last in ((1, 1.0), (4, 0.1)):
        solver = FlowMatchEulerDiscreteScheduler.from_config(schedule.scheduler.config)
        schedule.set_timesteps(solver, steps, image_tokens=256)
        assert solver.timesteps[0] == 1000 and len(solver.timesteps) == steps
        assert solver.sigmas[-2].item() == pytest.approx(last)
    assert schedule.ending_at(1000).scheduler.config.shift_terminal is None


def test_the_dynamic_shift_is_linear_in_the_number_of_tokens():
    """mu of FLUX.1: 0.5 at 256 tokens, 1.15 at 4096."""
    schedule = FlowSchedule(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    assert [schedule.dynamic_shift(tokens) for tokens in (256, 4096)] == pytest.approx([0.5, 1.15])
    assert schedule.dynamic_shift(1024) == pytest.approx(0.5 + 0.65 * 768 / 3840)


@pytest.mark.parametrize("setting", ["stochastic_sampling", "invert_sigmas"])
def test_what_is_no_deterministic_flow_is_refused(setting, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(saved(sd3, tmp_path / "sd3"))
    pipe.scheduler.register_to_config(**{setting: True})
    pipe.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=rf"scheduler: {setting} is not supported") as error:
        load_teacher(str(tmp_path / "other"))
    assert "\n" not in str(error.value)


def test_another_kind_of_scheduler_is_refused():
    with pytest.raises(UserError, match=r"is a EulerDiscreteScheduler; .* a FlowMatchEulerDiscreteScheduler"):
        FlowSchedule.from_pipeline(EulerDiscreteScheduler())


def test_a_student_at_an_earlier_timestep_is_refused():
    with pytest.raises(UserError, match="supports a student at its last timestep only, 1000"):
        FlowSchedule(FlowMatchEulerDiscreteScheduler()).ending_at(399)
