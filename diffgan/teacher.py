"""The frozen teacher: prompts to conditioning, noise to latents by its probability-flow ODE, latents to images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.files import EMBEDDED, embedded
from diffgan.latents import LatentSpace

# One set of scheduler settings for teacher, student and export, so that "one step" means the last training timestep.
SCHEDULER = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


def resolve(path: str) -> str:
    """The directory of an embedded pipeline ("glyphs"); any other path or hub id as it is."""
    return str(embedded("teacher")) if path == EMBEDDED else path


def _check_class(path: str) -> None:
    """Raises UserError if a pipeline directory is of another class, whose parts would be ignored silently."""
    index = Path(path) / "model_index.json"
    if index.is_file() and (found := json.loads(index.read_text()).get("_class_name")) != "StableDiffusionPipeline":
        raise UserError(f"teacher {path}: is a {found}, not a StableDiffusionPipeline")


class Teacher(nn.Module):
    """The parts of a `StableDiffusionPipeline`, frozen.

    Latents here are the diffusion model's: (N, C, H, W), noise N(0, I).
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
    ):
        super().__init__()
        self.vae, self.text_encoder, self.unet = vae, text_encoder, unet
        self.tokenizer = tokenizer
        self.scheduler = DDIMScheduler.from_config(scheduler.config, **SCHEDULER)
        self.space = LatentSpace.of(vae)
        for network in (vae, unet):
            network.to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype = torch.float32) -> "Teacher":
        """Load "glyphs", a pipeline directory or a hub id (safetensors only).

        Raises:
            UserError: `path` is a directory without `model_index.json`, or not a `StableDiffusionPipeline`.
        """
        path = resolve(path)
        if Path(path).exists() and not (Path(path) / "model_index.json").is_file():
            raise UserError(f"teacher {path}: no pipeline directory (model_index.json is missing)")
        _check_class(path)
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                path, torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"teacher {path}: cannot be loaded as a StableDiffusionPipeline: {reason}") from error
        return cls(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.unet, pipeline.scheduler)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts -> N rows of conditioning; equal prompts are encoded once, too long ones are cut."""
        unique = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(
            unique,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        embedded = self.text_encoder(tokens.input_ids.to(self.device))[0]  # (unique, L, D)
        row = {prompt: i for i, prompt in enumerate(unique)}
        return Conditioning(embedded[torch.tensor([row[prompt] for prompt in prompts], device=self.device)])

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts have more tokens than the text encoder takes, so that `encode` cuts them."""
        tokens = self.tokenizer(list(prompts), verbose=False).input_ids
        return [len(row) > self.tokenizer.model_max_length for row in tokens]

    @torch.no_grad()
    def solve(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int,
        guidance: float,
        on_step: Callable[[], None] | None = None,
    ) -> Tensor:
        """x = ODE(z, c, w): deterministic DDIM with classifier-free guidance, one batched network call a step.

        Args:
            noise: (N, C, H, W), N(0, I).
            conditioning: N rows, from `encode`.
            steps: network calls; timesteps are spaced `trailing`, so the first is the last training timestep.
            guidance: w of eps = eps(z) + w (eps(z, c) - eps(z)); 1 leaves the unconditional half out.
            on_step: called after every step.

        Raises:
            UserError: `steps` is not between 1 and the teacher's timesteps.
        """
        if not 1 <= steps <= (most := self.scheduler.config.num_train_timesteps):
            raise UserError(f"steps: {steps} is not between 1 and the teacher's {most} timesteps")
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, device=noise.device)
        latent = noise.to(self.unet.dtype) * scheduler.init_noise_sigma
        if guidance != 1:
            empty = self.encode([""] * len(noise))
            conditioning = Conditioning.cat([empty, conditioning])
        for t in scheduler.timesteps:
            inputs = latent if guidance == 1 else torch.cat([latent, latent])
            prediction = self.unet(inputs, t, **conditioning.arguments(), return_dict=False)[0]
            if guidance != 1:
                unconditional, conditional = prediction.chunk(2)
                prediction = unconditional + guidance * (conditional - unconditional)
            latent = scheduler.step(prediction, t, latent, eta=0.0, return_dict=False)[0]
            if on_step is not None:
                on_step()
        return latent

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, C, H / factor, W / factor), the mode of each."""
        inputs = images.to(self.device, self.vae.dtype, memory_format=torch.channels_last)
        return self.space.to_model(self.vae.encode(inputs).latent_dist.mode())

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> images (N, 3, H * factor, W * factor), about [-1, 1]."""
        return self.vae.decode(self.space.to_autoencoder(latent.to(self.vae.dtype)), return_dict=False)[0]
