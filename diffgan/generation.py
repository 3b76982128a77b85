"""The stage that makes pairs: a LightningModule whose prediction is the teacher's solution."""

from typing import NamedTuple

import lightning.pytorch as pl
from torch import Tensor

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs import PairBatch
from diffgan.teacher import Teacher


class PromptBatch(NamedTuple):
    """seed: (N,) int64.  prompt: N str."""

    seed: Tensor
    prompt: list[str]


class PairGeneration(pl.LightningModule):
    """x = ODE(z, c, w) for the seeds and prompts of a batch.

    Args:
        teacher: "glyphs", a pipeline directory or a hub id.
        steps: network calls of the solver.
        guidance: w of classifier-free guidance; 1 is none.
    """

    def __init__(self, teacher: str, steps: int, guidance: float):
        super().__init__()
        self.teacher_path, self.steps, self.guidance = teacher, steps, guidance
        self.teacher: Teacher | None = None

    def setup(self, stage: str) -> None:
        """Load the teacher, once: `PairWriter` asks for it before Lightning does.

        Raises:
            UserError: the teacher cannot be loaded, or does not have so many steps.
        """
        if self.teacher is not None:
            return
        self.teacher = Teacher.from_pretrained(self.teacher_path)
        timesteps = self.teacher.scheduler.config.num_train_timesteps
        if not 1 <= self.steps <= timesteps:
            raise UserError(f"steps: {self.steps} is not between 1 and the teacher's {timesteps} timesteps")

    def predict_step(self, batch: PromptBatch, _) -> PairBatch:
        noise = draw_noise(batch.seed, self.teacher.latent_shape)
        conditioning = self.teacher.encode(batch.prompt)
        latent = self.teacher.solve(noise.to(self.device), conditioning, self.steps, self.guidance)
        return PairBatch(batch.seed.cpu(), noise, batch.prompt, latent.float().cpu())
