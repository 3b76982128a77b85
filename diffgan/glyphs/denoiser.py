"""Stage 3 of the glyph teacher: the denoiser in the latent space of the autoencoder; it writes the pipeline."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPTextModel, CLIPTokenizer

from diffgan.errors import UserError
from diffgan.glyphs.graphed import Velocity, graphed
from diffgan.glyphs.networks import from_config
from diffgan.glyphs.time_budget import TimeBudget
from diffgan.teachers.schedule import SCHEDULER_SETTINGS
from diffgan.teachers.stable_diffusion import StableDiffusion
from diffgan.training import ema
from diffgan.training.lr_schedules import warmup_cooldown
from diffgan.training.offloading import attach_unregistered
from diffgan.training.results import writes_results

ENCODED_TEXTS = 4096  # captions of resident data encoded together


def stratified_timesteps(count: int, total: int, device: torch.device) -> Tensor:
    """One uniform draw in each of `count` equal strata, so that a batch covers all noise levels.

    Args:
        count: size of the batch.
        total: number of timesteps.
        device: of the draws.

    Returns:
        (count,) int64 in [0, total), ascending.
    """
    strata = torch.arange(count, device=device) + torch.rand(count, device=device)
    return (strata * (total / count)).long().clamp_max(total - 1)


def _check_channels(unet: dict[str, Any], vae: Path) -> None:
    """Raises UserError if the channels of the denoiser differ from those of the autoencoder's latents."""
    channels = AutoencoderKL.load_config(vae)["latent_channels"]
    for name in ("in_channels", "out_channels"):
        if unet.get(name, 4) != channels:
            raise UserError(f"unet.{name} is {unet.get(name, 4)}, but the latents of {vae} have {channels} channels")


class DenoiserTraining(pl.LightningModule):
    """Train a UNet by denoising; save its moving average with the other networks as a `StableDiffusionPipeline`.

    Args:
        pipeline: directory of the pipeline, which holds `vae`, `text_encoder` and `tokenizer` of stages 1 and 2.
        unet: arguments of `UNet2DConditionModel`.
        scheduler: arguments of `DDIMScheduler` (the noise schedule and the prediction type).
        optimizer: called with the parameters.
        steps: length of the learning-rate schedule.
        warmup: length of its linear warm-up, in steps.
        cooldown: length of its linear decay to zero, in steps.
        caption_dropout: probability that a caption is replaced by "", for classifier-free guidance.
        ema_half_life_images: half-life of the moving average of the weights, in images.
        seconds: length of the training in seconds instead of `steps`, for a machine that is rented by the minute: the
            cooldown is then the last cooldown / steps of that time. One process; the trainer needs `max_steps: -1`. A
            resumed run takes all of it again.
        cuda_graph: record the UNet's passes as CUDA graphs, which halves the time of a step or better. One process, on
            a CUDA device.
    """

    def __init__(
        self,
        pipeline: Path,
        unet: dict[str, Any],
        scheduler: dict[str, Any],
        optimizer: OptimizerCallable,
        steps: int,
        warmup: int = 200,
        cooldown: int = 0,
        caption_dropout: float = 0.1,
        ema_half_life_images: float = 8000,
        seconds: float | None = None,
        cuda_graph: bool = False,
    ):
        super().__init__()
        self.pipeline, self.optimizer = pipeline, optimizer
        self.steps, self.warmup, self.cooldown = steps, warmup, cooldown
        self.caption_dropout, self.ema_half_life_images = caption_dropout, ema_half_life_images
        self.time = None if seconds is None else TimeBudget(seconds)
        self.cuda_graph = cuda_graph
        if cuda_graph and not torch.cuda.is_available():  # before any data are encoded
            raise UserError("cuda_graph: there is no CUDA device; set cuda_graph: false")
        self.scheduler = DDIMScheduler.from_config(scheduler, **SCHEDULER_SETTINGS)
        self.tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
        self.text_encoder.requires_grad_(False).eval()
        _check_channels(unet, pipeline / "vae")
        self.unet = from_config(UNet2DConditionModel, unet).to(memory_format=torch.channels_last)
        self.average = ema.frozen_copy(self.unet)
        self._texts: Tensor | None = None  # (captions, tokens, features) float16, of the captions of resident data

    def on_fit_start(self) -> None:
        if self.time and self.trainer.world_size > 1:
            raise UserError("seconds: the clocks of several processes differ; give steps, or train with one process")
        if self.cuda_graph and (self.device.type != "cuda" or self.trainer.world_size > 1):
            raise UserError("cuda_graph: needs one process on a CUDA device; set cuda_graph: false")
        if self.cuda_graph and self.trainer.accumulate_grad_batches > 1:
            raise UserError("cuda_graph: a batch's gradients overwrite those before; set accumulate_grad_batches: 1")
        self._encode_captions()

    def on_validation_start(self) -> None:
        self._encode_captions()

    def _encode_captions(self) -> None:
        """Encode the captions of resident data, once."""
        captions = self.trainer.datamodule.captions
        if captions is not None and self._texts is None:
            chunks = [captions[i : i + ENCODED_TEXTS] for i in range(0, len(captions), ENCODED_TEXTS)]
            self._texts = torch.cat([self._encode(chunk).half() for chunk in chunks])

    def on_train_start(self) -> None:
        torch.manual_seed(torch.initial_seed() + self.global_rank)  # otherwise all processes would draw the same noise
        self._ema_pairs = ema.following(self.average, self.unet)
        velocity = Velocity(self.unet)
        if self.cuda_graph:
            velocity = graphed(self.unet, self.trainer.datamodule.batch_size, self.tokenizer.model_max_length)
        attach_unregistered(self, "velocity", velocity)
        if self.time:
            self.time.start()

    def train(self, mode: bool = True) -> "DenoiserTraining":
        super().train(mode)
        self.average.eval()
        self.text_encoder.eval()
        return self

    def configure_optimizers(self):
        optimizer = self.optimizer(self.unet.parameters())
        factor = warmup_cooldown(self.warmup, self.cooldown, self.steps)
        if self.time:
            factor = self.time.schedule(self.warmup, self.cooldown / self.steps)
        schedule = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, _) -> Tensor:
        captions = self._drop(batch.caption)
        t = stratified_timesteps(len(captions), self.scheduler.config.num_train_timesteps, self.device)
        loss = self.denoising_loss(self.velocity, batch.latent, captions, t)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _drop(self, captions: list[str] | Tensor) -> list[str] | Tensor:
        """The captions, some of them replaced by "", which is row 0 where they are rows of resident captions."""
        if isinstance(captions, Tensor):
            dropped = torch.rand(len(captions), device=captions.device) < self.caption_dropout
            return captions.masked_fill(dropped, 0)
        kept = torch.rand(len(captions)) >= self.caption_dropout
        return [caption if keep else "" for caption, keep in zip(captions, kept, strict=True)]

    def denoising_loss(self, velocity: Velocity, latent: Tensor, captions: list[str] | Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the predicted velocity v = alpha_t eps - sigma_t x (Salimans and Ho 2022).

        Args:
            velocity: the network, or its moving average.
            latent: (N, C, H, W), the x; the network sees x_t = alpha_t x + sigma_t eps with eps ~ N(0, 1).
            captions: N texts, or (N,) int64 rows of the data module's captions.
            t: (N,) int64 timesteps.

        Returns:
            () loss.
        """
        noise = torch.randn_like(latent)
        noisy = self.scheduler.add_noise(latent, noise, t).to(memory_format=torch.channels_last)
        prediction = velocity(noisy, t, self._encode(captions))
        return F.mse_loss(prediction, self.scheduler.get_velocity(latent, noise, t))

    @torch.no_grad()
    def _encode(self, captions: list[str] | Tensor) -> Tensor:
        """N captions -> (N, tokens, features)."""
        if isinstance(captions, Tensor):
            return self._texts[captions].float()
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.device))[0]

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        images = self.trainer.datamodule.batch_size * self.trainer.world_size
        half_life = ema.ramped(self.ema_half_life_images, images * self.trainer.global_step)
        ema.update(self._ema_pairs, ema.decay(images, half_life))

    def on_train_batch_end(self, *args) -> None:
        if self.time and self.time.share >= 1:
            self.trainer.should_stop = True  # Lightning validates once more, which writes the pipeline

    def validation_step(self, batch, _) -> None:
        t = stratified_timesteps(len(batch.caption), self.scheduler.config.num_train_timesteps, self.device)
        loss = self.denoising_loss(Velocity(self.average), batch.latent, batch.caption, t)
        self.log("validation/loss", loss, prog_bar=True, batch_size=len(batch.caption))

    def on_validation_epoch_end(self) -> None:
        if writes_results(self.trainer):
            self.save_pipeline()

    def save_pipeline(self) -> None:
        """Write the moving average, the autoencoder, the text encoder and the tokenizer as a pipeline directory."""
        vae = AutoencoderKL.from_pretrained(self.pipeline / "vae")
        teacher = StableDiffusion(vae, self.text_encoder, self.tokenizer, self.average, self.scheduler)
        teacher.as_pipeline().save_pretrained(self.pipeline)
