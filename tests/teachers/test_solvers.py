"""Solvers by name: those that are accepted reach the solution of the ODE, the others are refused with the reason."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.utils import is_scipy_available

from diffgan.errors import UserError
from diffgan.teachers import solvers
from diffgan.teachers.schedule import SCHEDULER_SETTINGS

ACCEPTED = [
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "KDPM2DiscreteScheduler",
    pytest.param("LMSDiscreteScheduler", marks=pytest.mark.skipif(not is_scipy_available(), reason="needs scipy")),
]
NOISY = [
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DPMSolverSDEScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "SASolverScheduler",
]


def schedule(**changes):
    stable_diffusion = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**(stable_diffusion | SCHEDULER_SETTINGS | changes))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_reaches_the_solution_of_the_ode(name, prediction):
    """Of data N(0, s^2) the best network is linear and the ODE known: x = z s / sqrt(alpha_T^2 s^2 + sigma_T^2)."""
    reference, spread = schedule(prediction_type=prediction), 0.8
    solver = solvers.solver(name, reference)
    solver.set_timesteps(200)
    z = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4)
    latent = z * solver.init_noise_sigma
    for t in solver.timesteps:
        scaled, signal = solver.scale_model_input(latent, t), reference.alphas_cumprod[int(t)]
        variance = signal * spread**2 + 1 - signal
        prediction_of = {
            "epsilon": (1 - signal).sqrt() * scaled / variance,
            "v_prediction": (signal * (1 - signal)).sqrt() * (1 - spread**2) * scaled / variance,
        }
        latent = solver.step(prediction_of[prediction], t, latent, return_dict=False)[0]
    last = reference.alphas_cumprod[-1]
    torch.testing.assert_close(latent, z * spread / (last * spread**2 + 1 - last).sqrt(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name", NOISY)
def test_a_scheduler_that_adds_noise_is_refused(name):
    with pytest.raises(UserError, match=f"solver {name}: adds fresh noise .* no function of its z; choose one of DDIM"):
        solvers.solver(name, schedule())


def test_noise_is_detected_where_the_configuration_decides_about_it():
    """A multistep solver is deterministic or not by the `algorithm_type` that the pipeline's configuration names."""
    plain, noisy = (
        DDIMScheduler.from_config(DPMSolverMultistepScheduler(algorithm_type=algorithm).config, **SCHEDULER_SETTINGS)
        for algorithm in ("dpmsolver++", "sde-dpmsolver++")
    )
    assert solvers.solver("DPMSolverMultistepScheduler", plain).config.algorithm_type == "dpmsolver++"
    with pytest.raises(UserError, match="adds fresh noise"):
        solvers.solver("DPMSolverMultistepScheduler", noisy)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DDIMInverseScheduler", "begins at timestep"),
        ("CogVideoXDDIMScheduler", "does not support the noise schedule"),
        ("FlowMatchEulerDiscreteScheduler", "is not a scheduler of diffusers that"),
        ("EDMEulerScheduler", "is not a scheduler of diffusers that"),
        ("AutoencoderKL", "is not a scheduler of diffusers that"),
        ("ddim", "is not a scheduler of diffusers that"),
        ("", "is not a scheduler of diffusers that"),
    ],
)
def test_a_scheduler_of_another_ode_is_refused(name, reason):
    with pytest.raises(UserError, match=f"solver {name}: {reason}.*choose one of DDIMScheduler, .*Heun"):
        solvers.solver(name, schedule())


def test_a_schedule_that_a_solver_does_not_support_is_refused():
    """Few classes can begin at zero signal; the others would silently solve another ODE."""
    zero = schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    with pytest.raises(UserError, match=r"HeunDiscreteScheduler: does not support .* \(rescale_betas_zero_snr\)"):
        solvers.solver("HeunDiscreteScheduler", zero)
    assert solvers.solver("DPMSolverMultistepScheduler", zero).alphas_cumprod[-1] < 1e-7


def test_the_checks_do_not_change_the_random_state():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    solvers.solver("EulerDiscreteScheduler", schedule())
    assert torch.equal(torch.rand(3), expected)


def test_manifests_name_a_solver_that_is_not_the_default():
    plain = solvers.describe("DDIMScheduler", schedule())
    assert plain == {key: value for key, value in schedule().config.items() if not key.startswith("_")}
    other = solvers.describe("HeunDiscreteScheduler", schedule())
    assert {key: value for key, value in other.items() if key != "solver"} == plain
    assert other["solver"]["class"] == "HeunDiscreteScheduler" and other["solver"]["beta_end"] == 0.012
    assert solvers.named_in(plain) is None and solvers.named_in(other) == "HeunDiscreteScheduler"
