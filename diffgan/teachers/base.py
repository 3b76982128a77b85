"""The frozen teacher: prompts to conditioning, noise to latents by its probability-flow ODE, latents to images."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.teachers import solvers

# One set of scheduler settings for teacher, student and export, so that "one step" means the last training timestep.
SCHEDULER = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


class Teacher(nn.Module, ABC):
    """The parts of a diffusers pipeline, frozen.

    Latents here are the diffusion model's: (N, C, H, W), noise N(0, I). What differs between pipeline classes is said
    by one adapter for each in `diffgan.teachers`: the methods that are abstract here.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    loading: ClassVar[dict[str, Any]] = {}  # arguments of the pipeline's `from_pretrained`
    parts: ClassVar[tuple[str, ...]]  # of the pipeline, as the adapter's constructor names them

    def __init__(self, vae: AutoencoderKL, unet: UNet2DConditionModel, scheduler: SchedulerMixin):
        super().__init__()
        self.vae, self.unet = vae, unet
        self.scheduler = DDIMScheduler.from_config(scheduler.config, **SCHEDULER)
        self._solvers: dict[str, SchedulerMixin] = {}
        _check_network(unet)
        solvers.check_schedule(self.scheduler, scheduler)
        self.space = LatentSpace.of(vae)
        for network in (vae, unet):
            network.to(memory_format=torch.channels_last)

    @classmethod
    def of(cls, pipeline: DiffusionPipeline) -> "Teacher":
        """The teacher in a pipeline.

        Raises:
            UserError: a part is missing, or not as Stable Diffusion has it.
        """
        parts = {name: getattr(pipeline, name, None) for name in cls.parts}
        if missing := [name for name, part in parts.items() if part is None]:
            raise UserError(f"model_index.json: a {cls.pipeline_class.__name__} without {missing[0]} is not supported")
        return cls(**parts)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    # ---- what an adapter says ----

    @property
    @abstractmethod
    def tokenizers(self) -> list[CLIPTokenizer]:
        """In the order of `text_encoders`."""

    @property
    @abstractmethod
    def text_encoders(self) -> list[CLIPTextModel]:
        """In the order in which the network is given their output."""

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides a latent, beside weights, vocabularies, scheduler and sizes; plain JSON."""
        return {}

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditioning:
        """One row for each prompt."""

    @abstractmethod
    def unconditional(self, count: int) -> Conditioning:
        """`count` rows of what the network is told where guidance leaves the prompt out."""

    @abstractmethod
    def as_pipeline(self) -> DiffusionPipeline:
        """The parts (a student's network perhaps in the teacher's place) as a stock pipeline."""

    # ---- what all have in common ----

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device  # diffusers' own property looks at every module

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts -> N rows of conditioning; equal prompts are encoded once, too long ones are cut."""
        unique = list(dict.fromkeys(prompts))
        row = {prompt: i for i, prompt in enumerate(unique)}
        rows = torch.tensor([row[prompt] for prompt in prompts], device=self.device)
        return self._encode(unique).map(lambda tensor: tensor[rows])

    def _tokens(self, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
        """(N, L) int64."""
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return tokens.input_ids.to(self.device)

    def solver(self, steps: int, name: str = solvers.DEFAULT) -> SchedulerMixin:
        """A fresh solver of the ODE, a scheduler of diffusers with its timesteps set.

        Raises:
            UserError: `steps` is not between 1 and the teacher's timesteps, or `name` is no deterministic scheduler.
        """
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= most:
            raise UserError(f"steps: {steps} is not between 1 and the teacher's {most} timesteps")
        if name not in self._solvers:
            self._solvers[name] = solvers.solver(name, self.scheduler)
        fresh = copy.deepcopy(self._solvers[name])
        fresh.set_timesteps(steps, device=self.device)
        return fresh

    def network_calls(self, steps: int, solver: str = solvers.DEFAULT) -> int:
        """How often `solve` calls the network (a call with guidance has both halves in it); errors as `solver`."""
        return len(self.solver(steps, solver).timesteps)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts have more tokens than the text encoder takes, so that `encode` cuts them."""
        tokenizer = self.tokenizers[0]  # where there are two they cut at the same place
        tokens = tokenizer(list(prompts), verbose=False).input_ids
        return [len(row) > tokenizer.model_max_length for row in tokens]

    @torch.no_grad()
    def solve(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int,
        guidance: float,
        on_step: Callable[[], None] | None = None,
        solver: str = solvers.DEFAULT,
    ) -> Tensor:
        """x = ODE(z, c, w) with classifier-free guidance, both halves of it in one batched network call.

        Args:
            noise: (N, C, H, W), N(0, I).
            conditioning: N rows, from `encode`.
            steps: of the solver; timesteps are spaced `trailing`, so the first is the last training timestep.
            guidance: w of eps = eps(z) + w (eps(z, c) - eps(z)); 1 leaves the unconditional half out.
            on_step: called after every network call (`network_calls` says how many there are).
            solver: name of a deterministic scheduler class of diffusers.

        Raises:
            UserError: as `solver`.
        """
        scheduler = self.solver(steps, solver)
        latent = noise.to(self.unet.dtype) * scheduler.init_noise_sigma
        if guidance != 1:
            conditioning = Conditioning.cat([self.unconditional(len(noise)), conditioning])
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(latent, t)
            prediction = self._predict(inputs, t, conditioning, guidance)
            latent = scheduler.step(prediction, t, latent, return_dict=False)[0]
            if on_step is not None:
                on_step()
        return latent

    def _predict(self, latent: Tensor, t: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        """eps(z) + w (eps(z, c) - eps(z)); conditioning: 2 N rows, the unconditional ones first, unless w is 1."""
        if guidance == 1:
            return self.unet(latent, t, **conditioning.arguments(), return_dict=False)[0]
        both = self.unet(torch.cat([latent, latent]), t, **conditioning.arguments(), return_dict=False)[0]
        unconditional, conditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, C, H / factor, W / factor), the mode of each."""
        inputs = images.to(self.device, self.vae.dtype, memory_format=torch.channels_last)
        return self.space.to_model(self.vae.encode(inputs).latent_dist.mode())

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> images (N, 3, H * factor, W * factor), about [-1, 1]."""
        return self.vae.decode(self.space.to_autoencoder(latent.to(self.vae.dtype)), return_dict=False)[0]


def _check_network(unet: UNet2DConditionModel) -> None:
    """Raises UserError if the network wants more than a latent, a time and a prompt."""
    config = unet.config
    if not isinstance(config.sample_size, int):
        raise UserError(f"unet: sample_size is {config.sample_size!r} and must be a whole number")
    if config.in_channels != config.out_channels:
        raise UserError(f"unet: takes {config.in_channels} channels and gives {config.out_channels}, not as many")
    if config.time_cond_proj_dim is not None:
        raise UserError("unet: takes the guidance as an input (time_cond_proj_dim), which is not supported")
