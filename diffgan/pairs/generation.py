"""The stage that makes pairs: a LightningModule whose predictions are the teacher's ODE solutions."""

from collections.abc import Sequence
from typing import NamedTuple

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from diffgan.noise import draw_noise
from diffgan.numbers import require, require_guidance
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.devices import require_precision
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import checked_size, load_teacher

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class PromptBatch(NamedTuple):
    """seed: (N,) int64.  prompt: N strings."""

    seed: Tensor
    prompt: list[str]


class PairGeneration(pl.LightningModule):
    """x = ODE(z, c, w) for the seeds and prompts of a batch.

    Args:
        teacher: "glyphs", a pipeline directory or a hub id.
        steps: of the solver.
        guidance: w of classifier-free guidance; 1 is none.
        solver: name of a deterministic scheduler class of diffusers (some call the network twice per step); None: the
            one that states the teacher's schedule, such as `DDIMScheduler`.
        compile: torch.compile the network: faster after a minute or more, and latents that differ by rounding.
        size: [height, width] of images in pixels; None: the model's usual one.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        teacher: str,
        steps: int,
        guidance: float,
        solver: str | None = None,
        compile: bool = False,
        size: list[int] | None = None,
    ):
        super().__init__()
        require("steps", steps, least=1)
        require_guidance("guidance", guidance)
        self.teacher_path, self.steps, self.guidance, self.solver = teacher, steps, guidance, solver
        self.compile_network, self.size = compile, checked_size(size)
        self.teacher: Teacher | None = None

    def setup(self, stage: str) -> None:
        """Load the teacher, once: `PairWriter` calls this before Lightning does.

        Raises:
            UserError: the teacher cannot be loaded, does not have so many steps or no guidance, or `solver` is not a
                solver for it.
        """
        if self.teacher is not None:
            return
        self.teacher = load_teacher(self.teacher_path, size=self.size)
        self.teacher.solver(self.steps, self.solver)
        self.teacher.check_guidance(self.guidance)
        if self.compile_network:
            self.teacher.denoiser.compile()

    def predict_step(self, batch: PromptBatch, _) -> PairBatch:
        """The pairs of a batch; their latents stay on the device, so that the next batch need not wait for a copy."""
        noise = self.noise(batch.seed)
        conditioning = self.teacher.encode(batch.prompt)
        z = noise.to(self.device)
        latent = self.teacher.solve(z, conditioning, self.steps, self.guidance, solver=self.solver)
        return PairBatch(batch.seed, noise, batch.prompt, latent.float())

    def noise(self, seed: Tensor) -> Tensor:
        """z of each seed, (N, C, H, W) float32 on the CPU whatever the trainer's precision."""
        return draw_noise(seed, self.teacher.latent_shape)


def generate_pairs(
    module: PairGeneration, batches: Sequence[PromptBatch], precision: str, callbacks: Sequence[pl.Callback] = ()
) -> list[PairBatch]:
    """The pairs of each batch, made on this machine's device (the first, if there are several).

    Args:
        precision: Lightning's name of it.

    Raises:
        UserError: the device does not have the precision.
    """
    trainer = pl.Trainer(accelerator="auto", devices=1, precision=precision, callbacks=list(callbacks), **QUIET)
    require_precision(precision, trainer.precision)
    return trainer.predict(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
