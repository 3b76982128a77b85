"""Solvers of the teacher's probability-flow ODE: schedulers of diffusers, by class name.

A scheduler class is a solver for a teacher if it passes three checks: it is deterministic, it has the teacher's noise
schedule, and it begins at the last timestep. What depends on the kind of schedule is in `diffgan.teachers.schedule`.
"""

import copy
import inspect
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffgan.errors import UserError, first_line
from diffgan.teachers.schedule import NoiseSchedule, public_config, schedule_for

NOT_DETERMINISTIC = "adds fresh noise at its steps, so a latent is no function of its z"
PROBE_STEPS = 4  # fewer where the schedule has fewer timesteps
PROBE_TOKENS = 1024  # of a latent; it decides where timesteps are, not whether a solver is one


def solver(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """A solver with the noise schedule, timestep spacing and prediction type of a teacher.

    Args:
        name: of a scheduler class of diffusers.
        scheduler: the teacher's.

    Returns:
        A new scheduler of that class, on the CPU; its timesteps are not set.

    Raises:
        UserError: there is no such class, it cannot be built, or it fails one of the checks.
    """
    schedule = schedule_for(scheduler)
    with torch.device("cpu"):  # tables and trial runs stay there, whatever torch's default device is
        reason = _reason_to_refuse(name, schedule)
        if reason is not None:
            suggestions = ", ".join(_usable_solvers(schedule))
            raise UserError(f"solver {name}: {reason}; choose one of {suggestions}")
        return _build(getattr(diffusers, name), schedule)


def initial_latent(solver: SchedulerMixin, noise: Tensor) -> Tensor:
    """z, (N, C, H, W), scaled to a solver's first timestep; schedulers of flow matching have no such scale."""
    return noise * getattr(solver, "init_noise_sigma", 1.0)


def model_input(solver: SchedulerMixin, latent: Tensor, t: Tensor) -> Tensor:
    """A solver's latent, (N, C, H, W), as the network takes it; schedulers of flow matching do not scale it."""
    if not hasattr(solver, "scale_model_input"):
        return latent
    return solver.scale_model_input(latent, t)


# ---- in manifests of pair sets ----


def describe(name: str | None, scheduler: SchedulerMixin) -> dict[str, Any]:
    """The teacher's schedule as plain values, with the configuration of another solver than its own under "solver"."""
    description = public_config(scheduler)
    if name in (None, schedule_for(scheduler).own_solver):
        return description
    return description | {"solver": {"class": name} | public_config(solver(name, scheduler))}


def named_in(description: dict[str, Any]) -> str | None:
    """The name of the solver in a description that `describe` made; None for the teacher's own."""
    return description.get("solver", {}).get("class")


# ---- the checks ----


def _usable_solvers(schedule: NoiseSchedule) -> list[str]:
    return [name for name in schedule.solver_names() if _reason_to_refuse(name, schedule) is None]


def _reason_to_refuse(name: str, schedule: NoiseSchedule) -> str | None:
    """Why the scheduler class of this name is not a solver; None if it is one."""
    scheduler_class = getattr(diffusers, name, None)
    missing = _missing_packages(scheduler_class)
    if "torchsde" in missing:  # all schedulers that need it add noise
        return NOT_DETERMINISTIC
    if missing:
        return f"diffusers needs {' and '.join(sorted(missing))} for it, which is not installed"
    if not inspect.isclass(scheduler_class) or not schedule.solver_parameters() <= _parameters(scheduler_class):
        return "is not a scheduler of diffusers that can be used with this teacher"
    try:
        return _failed_check(_build(scheduler_class, schedule), schedule)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        return f"cannot be used with this teacher ({first_line(error)})"


def _missing_packages(scheduler_class: type | None) -> set[str]:
    """Packages without which diffusers offers only a placeholder of this class."""
    return set(getattr(scheduler_class, "_backends", ())) - {"torch"}


def _failed_check(solver: SchedulerMixin, schedule: NoiseSchedule) -> str | None:
    """Which of the three checks a solver fails; None if it passes them."""
    if not _is_deterministic(solver, schedule):
        return NOT_DETERMINISTIC
    if (reason := schedule.mismatch(solver)) is not None:
        return reason
    schedule.set_timesteps(solver, _probe_steps(solver), PROBE_TOKENS)
    first = round(float(solver.timesteps[0]))
    if first != schedule.last_timestep:
        return f"begins at timestep {first}, not at the last one, {schedule.last_timestep}"
    return None


def _is_deterministic(solver: SchedulerMixin, schedule: NoiseSchedule) -> bool:
    """Whether two short runs under different random numbers end in the same latent."""
    return torch.equal(_trial_run(solver, schedule, seed=0), _trial_run(solver, schedule, seed=1))


def _trial_run(solver: SchedulerMixin, schedule: NoiseSchedule, seed: int) -> Tensor:
    """The last latent of a few steps with a simple function as network, under the random numbers of `seed`."""
    solver = copy.deepcopy(solver)
    schedule.set_timesteps(solver, _probe_steps(solver), PROBE_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        latent = initial_latent(solver, torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4))
        for t in solver.timesteps:
            prediction = 0.1 * model_input(solver, latent, t)
            latent = solver.step(prediction, t, latent, return_dict=False)[0]
    return latent.nan_to_num()


def _probe_steps(solver: SchedulerMixin) -> int:
    return min(PROBE_STEPS, solver.config.num_train_timesteps)


def _build(scheduler_class: type[SchedulerMixin], schedule: NoiseSchedule) -> SchedulerMixin:
    parameters = _parameters(scheduler_class)
    config = {key: value for key, value in schedule.solver_config().items() if key in parameters}
    return scheduler_class(**config)


def _parameters(scheduler_class: type) -> set[str]:
    return set(inspect.signature(scheduler_class.__init__).parameters)
