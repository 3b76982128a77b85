"""The noise schedule of a family: z_t = alpha_t x0 + sigma_t eps at the timesteps of training.

A schedule reads a scheduler of diffusers, which stays the component of the pipeline. Teacher, generator, solvers and
export use it: at which timestep a student is called, what the network predicts, and which schedulers solve the same
ODE.

There are two: the table of DDIM here, and flow matching (`flow_schedule.py`). A family with another one defines a
subclass of `NoiseSchedule`, registers it, and names it as its teacher's `schedule_class`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from diffgan.errors import UserError

# The same settings for teacher, student and export, so that one step means the last timestep of the table.
SCHEDULER_SETTINGS = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
WITHOUT_RUNGE_KUTTA = {"skip_prk_steps": True}  # PNDM as in every Stable Diffusion pipeline


class NoiseSchedule(ABC):
    """The noise schedule that a scheduler of diffusers states.

    Attributes:
        scheduler_class: the class of scheduler that this schedule reads.
        scheduler: the scheduler.
    """

    scheduler_class: ClassVar[type[SchedulerMixin]]

    def __init__(self, scheduler: SchedulerMixin):
        self.scheduler = scheduler

    # ---- from a pipeline ----

    @classmethod
    @abstractmethod
    def from_pipeline(cls, scheduler: SchedulerMixin) -> "NoiseSchedule":
        """The schedule that a pipeline's own scheduler, of any class, was trained with.

        Raises:
            UserError: that scheduler has no such schedule.
        """

    @classmethod
    @abstractmethod
    def load(cls, path: str) -> "NoiseSchedule":
        """The schedule of a pipeline directory or hub id, from its configuration alone.

        Raises:
            OSError, ValueError: the configuration cannot be read.
        """

    # ---- the schedule ----

    @property
    @abstractmethod
    def num_timesteps(self) -> int:
        """Number of training timesteps: the largest number of steps of a solver."""

    @property
    @abstractmethod
    def last_timestep(self) -> int:
        """The timestep with the most noise, where solvers begin and, by default, a student is called."""

    @property
    @abstractmethod
    def prediction_type(self) -> str:
        """What the network predicts, a key of `diffgan.teachers.prediction.EQUATIONS`."""

    @abstractmethod
    def alpha(self, t: int) -> Tensor:
        """alpha_t, (), float32."""

    @abstractmethod
    def sigma(self, t: int) -> Tensor:
        """sigma_t, (), float32."""

    def check_timestep(self, t: int) -> None:
        """Raise a UserError if a student cannot be called at timestep t."""
        if not 0 <= t <= self.last_timestep:
            raise UserError(f"timesteps: {t} is not between 0 and the teacher's last timestep, {self.last_timestep}")

    def ending_at(self, t: int) -> "NoiseSchedule":
        """This schedule without the timesteps after t: solvers then begin at t, and one step is a call at t.

        Raises:
            UserError: t is not between 0 and the last timestep, or this kind of schedule ends at the last one only.
        """
        self.check_timestep(t)
        if t != self.last_timestep:
            kind = type(self.scheduler).__name__
            raise UserError(f"timesteps: a {kind} supports a student at its last timestep only, {self.last_timestep}")
        return self

    def check_steps(self, steps: int) -> None:
        """Raise a UserError if a solver cannot take so many steps."""
        if not 1 <= steps <= self.num_timesteps:
            raise UserError(f"steps: {steps} is not between 1 and the teacher's {self.num_timesteps} timesteps")

    # ---- which schedulers of diffusers solve the same ODE ----

    @property
    def own_solver(self) -> str:
        """Name of the scheduler class that solves the ODE unless another one is asked for."""
        return type(self.scheduler).__name__

    @property
    def timestep_spacing(self) -> str:
        """How the timesteps of solvers are spaced, for the manifest of a pair set."""
        return self.scheduler.config.timestep_spacing

    def set_timesteps(self, solver: SchedulerMixin, steps: int, image_tokens: int) -> None:
        """Set the timesteps of a solver, on the CPU.

        Args:
            solver: with this noise schedule.
            steps: number of steps.
            image_tokens: tokens of one latent, which some schedules depend on.
        """
        solver.set_timesteps(steps, device="cpu")

    @abstractmethod
    def solver_names(self) -> list[str]:
        """Scheduler classes that are suggested as solvers, if they pass the checks."""

    @abstractmethod
    def solver_parameters(self) -> set[str]:
        """Arguments that the constructor of a solver must have."""

    @abstractmethod
    def solver_config(self) -> dict[str, Any]:
        """Arguments for the constructor of a solver; those it does not have are ignored."""

    @abstractmethod
    def mismatch(self, solver: SchedulerMixin) -> str | None:
        """Why a scheduler has another noise schedule; None if it has this one."""


SCHEDULES: dict[type[SchedulerMixin], type[NoiseSchedule]] = {}  # by scheduler class


def register(schedule: type[NoiseSchedule]) -> type[NoiseSchedule]:
    """Class decorator: read schedulers of this `scheduler_class` as this schedule."""
    SCHEDULES[schedule.scheduler_class] = schedule
    return schedule


def schedule_for(scheduler: SchedulerMixin) -> NoiseSchedule:
    """The noise schedule of a teacher's scheduler.

    Raises:
        UserError: there is none for its class.
    """
    for scheduler_class, schedule in SCHEDULES.items():
        if isinstance(scheduler, scheduler_class):
            return schedule(scheduler)
    known = " and ".join(scheduler_class.__name__ for scheduler_class in SCHEDULES)
    raise UserError(f"scheduler: a {type(scheduler).__name__} is not supported; supported are {known}")


def public_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    """The configuration of a scheduler without diffusers' own entries (`_class_name`, ...)."""
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@register
class DDIMSchedule(NoiseSchedule):
    """The table of `DDIMScheduler`: alpha_t^2 = alphas_cumprod[t], sigma_t^2 = 1 - alphas_cumprod[t]."""

    scheduler_class = DDIMScheduler

    @classmethod
    def from_pipeline(cls, scheduler: SchedulerMixin) -> "DDIMSchedule":
        schedule = cls(DDIMScheduler.from_config(scheduler.config, **SCHEDULER_SETTINGS))
        schedule.check(scheduler)
        return schedule

    @classmethod
    def load(cls, path: str) -> "DDIMSchedule":
        return cls(DDIMScheduler.from_pretrained(path, subfolder="scheduler", **SCHEDULER_SETTINGS))

    def check(self, original: SchedulerMixin) -> None:
        """Raise a UserError if the network was not trained on this schedule.

        Args:
            original: the pipeline's own scheduler, whose configuration this schedule was made from.
        """
        if self.prediction_type not in PREDICTION_TYPES:
            known = ", ".join(PREDICTION_TYPES)
            raise UserError(f"scheduler: prediction_type is {self.prediction_type!r} and must be one of {known}")
        if not self._has_same_table(original):
            name = type(original).__name__
            raise UserError(f"scheduler: a {name} without DDIMScheduler's table of betas is not supported")
        if self.prediction_type == "epsilon" and self.scheduler.alphas_cumprod[-1] == 0:
            raise UserError(
                "scheduler: rescale_betas_zero_snr cannot be used with epsilon, which determines no x0 where alpha is 0"
            )

    @property
    def num_timesteps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    @property
    def last_timestep(self) -> int:
        return self.num_timesteps - 1

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.prediction_type

    def alpha(self, t: int) -> Tensor:
        return self.scheduler.alphas_cumprod[t].sqrt()

    def sigma(self, t: int) -> Tensor:
        return (1 - self.scheduler.alphas_cumprod[t]).sqrt()

    def ending_at(self, t: int) -> "DDIMSchedule":
        """The first t + 1 entries of the table, stated as `trained_betas`: alpha_t and sigma_t stay what they are.

        With `trailing` spacing one step of any stock pipeline is then a call at t. (`leading` spacing with
        `steps_offset: t` would be shorter, but `StableDiffusionPipeline` sets every other offset than 1 to 1.)
        """
        self.check_timestep(t)
        if t == self.last_timestep:
            return self
        betas = self.scheduler.betas[: t + 1].tolist()  # with rescale_betas_zero_snr they are rescaled already
        table = {"num_train_timesteps": t + 1, "trained_betas": betas, "rescale_betas_zero_snr": False}
        return type(self)(DDIMScheduler.from_config(self.scheduler.config, **table))

    def solver_names(self) -> list[str]:
        return [scheduler.name for scheduler in KarrasDiffusionSchedulers]

    def solver_parameters(self) -> set[str]:
        return {"beta_schedule", "prediction_type"}

    def solver_config(self) -> dict[str, Any]:
        return public_config(self.scheduler) | WITHOUT_RUNGE_KUTTA

    def mismatch(self, solver: SchedulerMixin) -> str | None:
        if self._has_same_table(solver):
            return None
        setting = " (rescale_betas_zero_snr)" if self.scheduler.config.rescale_betas_zero_snr else ""
        return f"does not support the noise schedule of this teacher{setting}"

    def _has_same_table(self, other: SchedulerMixin) -> bool:
        """Whether another scheduler has the same alphas (some write a zero at the end as 2^-24)."""
        table, others = self.scheduler.alphas_cumprod, getattr(other, "alphas_cumprod", None)
        if not isinstance(others, Tensor) or table.shape != others.shape:
            return False
        return torch.allclose(others.float().cpu(), table.float().cpu(), rtol=1e-5, atol=1e-7)
