"""Solvers of the teacher's ODE: schedulers of diffusers by name, and the checks that make one a solver of it."""

import copy
import inspect
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from diffgan.errors import UserError, first_line

DEFAULT = "DDIMScheduler"
WITHOUT_RUNGE_KUTTA = {"skip_prk_steps": True}  # PNDM as every Stable Diffusion has it
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NOISY = "adds fresh noise at its steps, so a latent is no function of its z"
PROBE_STEPS = 4


def solver(name: str, schedule: DDIMScheduler) -> SchedulerMixin:
    """The scheduler class of this name with the noise schedule, spacing and prediction type of `schedule`.

    It has to be a solver of the same ODE: to begin at the last timestep, to know the noise schedule, and to draw
    nothing, which is tried out: two runs under different random numbers must end in the same latent.

    Raises:
        UserError: it is no such class or cannot be built, or it fails one of the three.
    """
    with torch.device("cpu"):  # tables and trial runs stay there, whatever torch's default device is
        reason = _refusal(name, schedule)
        if reason is not None:
            good = [known.name for known in KarrasDiffusionSchedulers if _refusal(known.name, schedule) is None]
            raise UserError(f"solver {name}: {reason}; choose one of {', '.join(good)}")
        return _built(getattr(diffusers, name), schedule)


def describe(name: str, schedule: DDIMScheduler) -> dict[str, Any]:
    """What a manifest says of the schedule, and under "solver" of a solver that is not the default."""
    described = _plain(schedule.config)
    if name == DEFAULT:
        return described
    return described | {"solver": {"class": name} | _plain(solver(name, schedule).config)}


def named_in(description: dict[str, Any]) -> str:
    """The name of the solver in what `describe` has said."""
    return description.get("solver", {}).get("class", DEFAULT)


def check_schedule(schedule: DDIMScheduler, original: SchedulerMixin) -> None:
    """Raises UserError if `schedule`, made of a pipeline's own scheduler, is not what the network was trained on."""
    kind, prediction = type(original).__name__, schedule.config.prediction_type
    if prediction not in PREDICTIONS:
        raise UserError(f"scheduler: prediction_type is {prediction!r} and must be one of {', '.join(PREDICTIONS)}")
    if not _same_noise(original, schedule):
        raise UserError(f"scheduler: a {kind} has no table of betas as DDIM has it, so it is no teacher's here")
    if prediction == "epsilon" and schedule.alphas_cumprod[-1] == 0:
        raise UserError("scheduler: rescale_betas_zero_snr with epsilon: at the last timestep it says nothing about x")


def _refusal(name: str, schedule: DDIMScheduler) -> str | None:
    """Why the scheduler class of this name is no solver; None if it is one."""
    kind = getattr(diffusers, name, None)
    missing = set(getattr(kind, "_backends", ())) - {"torch"}  # diffusers' stand-in for a class it cannot import
    if missing and "torchsde" not in missing:
        return f"diffusers needs {' and '.join(sorted(missing))} for it, which is not installed"
    if missing:
        return NOISY
    if not (inspect.isclass(kind) and _parameters(kind) >= {"beta_schedule", "prediction_type"}):
        return "is no scheduler of diffusers that a Stable Diffusion can use"
    try:
        return _fault(_built(kind, schedule), schedule)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        return f"cannot be used with this teacher ({first_line(error)})"


def _fault(built: SchedulerMixin, schedule: DDIMScheduler) -> str | None:
    """What a trial run and the table of alphas show."""
    if not torch.equal(_trial(built, seed=0), _trial(built, seed=1)):
        return NOISY
    if not _same_noise(built, schedule):
        why = " (rescale_betas_zero_snr)" if schedule.config.rescale_betas_zero_snr else ""
        return f"does not know the noise schedule of this teacher{why}"
    built.set_timesteps(PROBE_STEPS)
    last = schedule.config.num_train_timesteps - 1
    if (first := round(float(built.timesteps[0]))) != last:
        return f"begins at timestep {first}, not at the last one, {last}"
    return None


def _trial(built: SchedulerMixin, seed: int) -> Tensor:
    """Where a short run with a made-up network ends, under the random numbers of `seed`."""
    scheduler = copy.deepcopy(built)
    scheduler.set_timesteps(PROBE_STEPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        latent = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            prediction = 0.1 * scheduler.scale_model_input(latent, t)
            latent = scheduler.step(prediction, t, latent, return_dict=False)[0]
    return latent.nan_to_num()


def _built(kind: type[SchedulerMixin], schedule: DDIMScheduler) -> SchedulerMixin:
    known = _parameters(kind)
    config = _plain(schedule.config) | WITHOUT_RUNGE_KUTTA
    return kind(**{key: value for key, value in config.items() if key in known})


def _same_noise(one: SchedulerMixin, other: SchedulerMixin) -> bool:
    """Whether two schedulers have the same table of alphas (a zero at its end may be written as 2^-24)."""
    tables = [getattr(scheduler, "alphas_cumprod", None) for scheduler in (one, other)]
    return all(isinstance(table, Tensor) for table in tables) and (
        tables[0].shape == tables[1].shape
        and torch.allclose(*(table.float().cpu() for table in tables), rtol=1e-5, atol=1e-7)
    )


def _parameters(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)


def _plain(config) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
