"""The noise schedule of flow matching: z_t = (1 - sigma) x0 + sigma eps at timestep 1000 sigma."""

from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from diffgan.errors import UserError
from diffgan.numbers import require
from diffgan.teachers.schedule import NoiseSchedule, public_config, register

MAX_SHIFT, MAX_DYNAMIC_SHIFT = 1000, 10  # of the second one e is a factor's exponent
SOLVERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


@register
class FlowSchedule(NoiseSchedule):
    """alpha = 1 - sigma, sigma = t / 1000 (Lipman et al. 2023, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206).

    The network predicts v = eps - x0. At the last timestep, 1000, z is pure noise, and one step is x0 = z - v. A
    scheduler's shift moves the timesteps between the first and the last one; it changes neither alpha nor sigma of a
    timestep.
    """

    scheduler_class = FlowMatchEulerDiscreteScheduler

    @classmethod
    def from_pipeline(cls, scheduler: SchedulerMixin) -> "FlowSchedule":
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            name, expected = type(scheduler).__name__, FlowMatchEulerDiscreteScheduler.__name__
            raise UserError(f"scheduler: is a {name}; this kind of pipeline is supported with a {expected}")
        schedule = cls(FlowMatchEulerDiscreteScheduler.from_config(scheduler.config))
        schedule.check()
        return schedule

    @classmethod
    def load(cls, path: str) -> "FlowSchedule":
        return cls.from_pipeline(FlowMatchEulerDiscreteScheduler.from_pretrained(path, subfolder="scheduler"))

    def check(self) -> None:
        """Raise a UserError if the scheduler does not state a deterministic flow from noise to images."""
        for setting in ("stochastic_sampling", "invert_sigmas"):
            if self.scheduler.config.get(setting):
                raise UserError(
                    f"scheduler: {setting} is not supported: a pair needs a deterministic path from its noise; set it "
                    "to false in scheduler_config.json if the model was not trained for it"
                )

        config = self.scheduler.config
        require("scheduler: shift", config.shift, above=0, most=MAX_SHIFT)
        if config.use_dynamic_shifting:
            for setting in ("base_shift", "max_shift"):
                require(f"scheduler: {setting}", config[setting], least=0, most=MAX_DYNAMIC_SHIFT)
            require("scheduler: max_image_seq_len", config.max_image_seq_len, above=config.base_image_seq_len)

    @property
    def num_timesteps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    @property
    def last_timestep(self) -> int:
        return self.num_timesteps

    @property
    def prediction_type(self) -> str:
        return "flow_prediction"

    def alpha(self, t: int) -> Tensor:
        return 1 - self.sigma(t)

    def sigma(self, t: int) -> Tensor:
        return torch.tensor(t / self.num_timesteps)

    def ending_at(self, t: int) -> "FlowSchedule":
        """This schedule without `shift_terminal`, which leaves one step undefined: its first timestep is its last one.

        Raises:
            UserError: t is not the last timestep.
        """
        super().ending_at(t)
        return type(self)(FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config, shift_terminal=None))

    # ---- solvers ----

    @property
    def timestep_spacing(self) -> str:
        return "flow"

    def set_timesteps(self, solver: SchedulerMixin, steps: int, image_tokens: int) -> None:
        solver.set_timesteps(steps, device="cpu", **self._shift(solver, steps, image_tokens))

    def _shift(self, solver: SchedulerMixin, steps: int, image_tokens: int) -> dict[str, float]:
        """The argument of `set_timesteps` that a dynamic shift takes; one step has no shift to a terminal sigma."""
        if steps == 1 and solver.config.get("shift_terminal"):
            solver.register_to_config(shift_terminal=None)
        dynamic = solver.config.get("use_dynamic_shifting", False)
        return {"mu": self.dynamic_shift(image_tokens)} if dynamic else {}

    def dynamic_shift(self, image_tokens: int) -> float:
        """mu, linear in the number of image tokens between two that the scheduler states (Esser et al., section 5.3.2).

        Stock pipelines compute it in the same way.
        """
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return config.base_shift + slope * (image_tokens - config.base_image_seq_len)

    def solver_names(self) -> list[str]:
        return list(SOLVERS)

    def solver_parameters(self) -> set[str]:
        return {"num_train_timesteps", "shift"}

    def solver_config(self) -> dict[str, Any]:
        return public_config(self.scheduler)

    def mismatch(self, solver: SchedulerMixin) -> str | None:
        """Solvers of flow matching have no table: the sigmas of training must be equal."""
        sigmas, others = self.scheduler.sigmas, getattr(solver, "sigmas", None)
        if isinstance(others, Tensor) and others.shape == sigmas.shape and torch.allclose(others.cpu(), sigmas.cpu()):
            return None
        return "does not support the noise schedule of this teacher"


class EvenFlowSchedule(FlowSchedule):
    """`FlowSchedule` with sigmas evenly from 1 to 1 / steps before the shift, as `FluxPipeline` spaces them."""

    def set_timesteps(self, solver: SchedulerMixin, steps: int, image_tokens: int) -> None:
        if not isinstance(solver, FlowMatchEulerDiscreteScheduler):
            return super().set_timesteps(solver, steps, image_tokens)
        sigmas = np.linspace(1.0, 1 / steps, steps)
        solver.set_timesteps(sigmas=sigmas, device="cpu", **self._shift(solver, steps, image_tokens))
