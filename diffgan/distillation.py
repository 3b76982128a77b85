"""Diffusion2GAN: who moves when. Formulas live in `regression`, networks in `nets`, observation in callbacks."""

import copy

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy

from diffgan import ema
from diffgan.errors import UserError
from diffgan.nets.generator import OneStepGenerator
from diffgan.pairs import PairBatch, weights_digest
from diffgan.regression import RegressionLoss
from diffgan.schedules import warmup_cooldown
from diffgan.teacher import Teacher

FROZEN = ("teacher.", "regression.")  # rebuilt from the configuration, never in a checkpoint
PRECISIONS = ("32-true", "bf16-mixed", "64-true")


class Diffusion2GAN(pl.LightningModule):
    """Distil the teacher into a one-step generator from its noise-latent pairs (paper, algorithm of section 3).

    One batch:
        x^ = G(z, c)                          one generator pass
        G moves down  L_reg(x^, x)            the adversarial player joins between these two lines
        G_ema follows G

    The clock counts images: `images_seen` is global over processes and saved with the weights.

    Args:
        teacher: pipeline directory, hub id, or "glyphs" for the embedded one.
        regression: distance of the generated latent to the teacher's.
        generator_optimizer: called with the generator's parameters.
        images: length of the training, in images.
        warmup_images, cooldown_images: linear rise and final linear fall of the learning rate.
        clip_norm: largest norm of the generator's gradient.
        channels_last: memory layout of the generator (faster on CPUs and tensor cores).
    """

    def __init__(
        self,
        teacher: str,
        regression: RegressionLoss,
        generator_optimizer: OptimizerCallable,
        images: int,
        warmup_images: int = 1000,
        cooldown_images: int = 0,
        clip_norm: float = 1.0,
        channels_last: bool = True,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # frozen networks are left out; `on_load_checkpoint` checks the rest
        self.teacher_path, self.regression = teacher, regression.requires_grad_(False)
        self.generator_optimizer, self.images = generator_optimizer, images
        self.learning_rate_factor = warmup_cooldown(warmup_images, cooldown_images, images)
        self.clip_norm, self.channels_last = clip_norm, channels_last
        self.ema_half_life_images = 0.0  # set by the EMA callback
        self.teacher: Teacher | None = None
        self.images_seen = 0

    # ---- building ----

    def configure_model(self) -> None:
        if self.teacher is not None:
            return
        self.teacher = Teacher.from_pretrained(self.teacher_path)
        self.teacher_digest = weights_digest(self.teacher)
        self.regression.check_space(self.teacher.space)
        self._check_pairs()
        self.generator = OneStepGenerator(copy.deepcopy(self.teacher.unet).requires_grad_(True), self.teacher.scheduler)
        if self.channels_last:
            self.generator.to(memory_format=torch.channels_last)
        self.generator_ema = ema.frozen_copy(self.generator)
        self.generator.train()

    def _check_pairs(self) -> None:
        """Refuse pairs that another teacher made."""
        if self._trainer is None:  # built outside a run: there are no pairs
            return
        manifest = self.trainer.datamodule.pairs.manifest
        if manifest.teacher_digest != self.teacher_digest:
            raise UserError(
                f"{self.trainer.datamodule.folder}: the pairs are of another teacher (made with {manifest.teacher}, "
                f"whose weights differ from those of {self.teacher_path}); name that teacher, or make new pairs"
            )

    def setup(self, stage: str) -> None:
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise UserError("FSDPStrategy trains two players wrongly; use ModelParallelStrategy (FSDP2) or DDPStrategy")
        if self.trainer.precision not in PRECISIONS:
            raise UserError(f"precision {self.trainer.precision} is not supported; use one of {', '.join(PRECISIONS)}")

    def configure_optimizers(self):
        optimizer = self.generator_optimizer(self.generator.parameters())
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]  # a checkpoint brings those it had
        return optimizer

    def train(self, mode: bool = True) -> "Diffusion2GAN":
        super().train(mode)
        for frozen in (self.teacher, self.regression, getattr(self, "generator_ema", None)):
            if frozen is not None:
                frozen.eval()
        return self

    # ---- the algorithm ----

    def training_step(self, batch: PairBatch, _) -> None:
        conditioning = self.teacher.encode(batch.prompt)
        optimizer = self.optimizers()
        self._set_learning_rate(optimizer)
        with self.toggled_optimizer(optimizer):
            generated = self.generator(batch.noise, conditioning)
            loss = self.regression(generated, batch.latent, self._random()).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self._advance(len(batch.prompt) * self.trainer.world_size)
        self.log("g/regression", loss.detach(), prog_bar=True)

    def on_before_optimizer_step(self, optimizer) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.clip_norm)
        if not norm.isfinite():
            seen = self.images_seen
            raise UserError(f"the gradient's norm is {norm.item()} after {seen} images; lower the learning rate")
        self.log("g/gradient_norm", norm)

    def _advance(self, images: int) -> None:
        """G_ema follows G; the clock moves; the budget ends the training."""
        factor = ema.decay(images, ema.ramped(self.ema_half_life_images, self.images_seen))
        ema.update(self.generator_ema, self.generator, factor)
        self.images_seen += images
        self.log("images", float(self.images_seen))
        self._stop_at_budget()

    def on_train_start(self) -> None:
        self._stop_at_budget()

    def _stop_at_budget(self) -> None:
        if self.images_seen >= self.images:
            self.trainer.should_stop = True

    def _set_learning_rate(self, optimizer) -> None:
        factor = self.learning_rate_factor(self.images_seen)
        for group, learning_rate in zip(optimizer.param_groups, self._learning_rates, strict=True):
            group["lr"] = factor * learning_rate

    def _random(self) -> torch.Generator:
        """Randomness as a function of (seed, images seen, rank): resuming needs no stored generator."""
        seed = hash((torch.initial_seed(), self.images_seen, self.global_rank)) & 0x7FFF_FFFF_FFFF_FFFF
        return torch.Generator().manual_seed(seed)

    # ---- held-out pairs ----

    def validation_step(self, batch: PairBatch, _) -> None:
        """Trajectory fidelity: distance of student and teacher on pairs that training never saw."""
        generated = self.generator_ema(batch.noise, self.teacher.encode(batch.prompt))
        fixed = torch.Generator().manual_seed(0)
        distances = {
            "validation/regression": self.regression(generated, batch.latent, fixed).mean(),
            "validation/mse": (generated - batch.latent).square().mean(),
        }
        self.log_dict(distances, prog_bar=True, batch_size=len(batch.prompt), sync_dist=True)

    test_step = validation_step

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        weights = checkpoint["state_dict"]
        checkpoint["images_seen"] = self.images_seen
        checkpoint["teacher_digest"] = self.teacher_digest
        checkpoint["state_dict"] = {name: w for name, w in weights.items() if not name.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        expected = {name: w.shape for name, w in self.state_dict().items() if not name.startswith(FROZEN)}
        found = {name: w.shape for name, w in checkpoint["state_dict"].items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"the checkpoint is of another model: {name} has shape {_text(found.get(name))} there and "
                    f"{_text(expected.get(name))} in the model of teacher {self.teacher_path}"
                )
        if checkpoint["teacher_digest"] != self.teacher_digest:
            raise UserError(f"the checkpoint is of another model: its teacher was not {self.teacher_path}")
        self.images_seen = checkpoint["images_seen"]


def _text(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))
