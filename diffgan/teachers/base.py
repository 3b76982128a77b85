"""The frozen teacher: prompts to conditioning, noise to latents by its probability-flow ODE, latents to images."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.teachers import solvers
from diffgan.teachers.denoiser import adapter_for
from diffgan.teachers.schedule import DDIMSchedule, NoiseSchedule
from diffgan.training.transfer import to_device


class Teacher(nn.Module, ABC):
    """The components of a diffusers pipeline, frozen and in eval mode.

    Latents are the diffusion model's: (N, C, H, W), noise N(0, I). There is one subclass, a family, for each pipeline
    class. It provides the class attributes and the abstract members below; the rest is the same for all families.

    Attributes:
        pipeline_class: the pipeline class of diffusers.
        load_options: arguments of the pipeline's `from_pretrained`.
        components: names of the pipeline's components, as the subclass's constructor names them.
        network_class: class of the denoising network; `diffgan.teachers.denoiser` has an adapter for it.
        schedule_class: the kind of noise schedule.
        schedule: the noise schedule.
        vae: the autoencoder.
        space: the latent space of the autoencoder.

    Args:
        vae: the autoencoder.
        denoiser: the denoising network.
        scheduler: the pipeline's own, of any class that states a schedule of `schedule_class`.

    Raises:
        UserError: a component is not supported.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    load_options: ClassVar[dict[str, Any]] = {}
    components: ClassVar[tuple[str, ...]]
    network_class: ClassVar[type[nn.Module]] = UNet2DConditionModel
    schedule_class: ClassVar[type[NoiseSchedule]] = DDIMSchedule

    def __init__(self, vae: AutoencoderKL, denoiser: nn.Module, scheduler: SchedulerMixin):
        super().__init__()
        self._adapter = adapter_for(denoiser)
        self._adapter.check(denoiser)
        self.vae = vae
        self.add_module(self._adapter.component, denoiser)
        self.schedule = self.schedule_class.from_pipeline(scheduler)
        self.space = LatentSpace.of(vae)
        if self.latent_shape[0] != self.space.channels:
            channels = f"{self.latent_shape[0]} channels, but those of the vae have {self.space.channels}"
            raise UserError(f"{self._adapter.component}: its latents have {channels}")
        self._checked_solvers: dict[str, SchedulerMixin] = {}
        for network in (vae, denoiser):
            network.to(memory_format=torch.channels_last)

    @classmethod
    def from_pipeline(cls, pipeline: DiffusionPipeline) -> "Teacher":
        """The teacher whose components are those of a pipeline.

        Raises:
            UserError: a component is missing or not supported.
        """
        components = {name: getattr(pipeline, name, None) for name in cls.components}
        for name, component in components.items():
            if component is None:
                kind = cls.pipeline_class.__name__
                raise UserError(f"model_index.json: a {kind} without {name} is not supported")
        teacher = cls(**components)
        teacher._check_tokenizers()
        return teacher

    def _check_tokenizers(self) -> None:
        """Raises UserError if a tokenizer makes tokens or texts that its text encoder has no embedding for."""
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            tokens, positions = encoder.config.vocab_size, encoder.config.max_position_embeddings
            last, length = max(tokenizer.get_vocab().values(), default=0), tokenizer.model_max_length
            if not 0 <= last < tokens:
                raise UserError(f"tokenizer: has token number {last}, but its text encoder has {tokens} tokens")
            if not 2 <= length <= positions:
                raise UserError(
                    f"tokenizer: model_max_length is {length}, but its text encoder has {positions} positions"
                )

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    # ---- what a family provides ----

    @property
    @abstractmethod
    def tokenizers(self) -> list[CLIPTokenizer]:
        """The tokenizers, in the order of `text_encoders`."""

    @property
    @abstractmethod
    def text_encoders(self) -> list[CLIPTextModel]:
        """The text encoders, in the order in which the network takes their outputs."""

    @property
    def settings(self) -> dict[str, Any]:
        """Plain JSON values that decide a latent beside weights, vocabularies, scheduler and sizes."""
        return {}

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditioning:
        """One row for each prompt."""

    @abstractmethod
    def unconditional(self, count: int) -> Conditioning:
        """`count` rows of the conditioning that guidance uses in place of a prompt."""

    @abstractmethod
    def as_pipeline(self) -> DiffusionPipeline:
        """A stock pipeline of the teacher's components; `export` has put a student's weights into the network."""

    # ---- components ----

    @property
    def denoiser(self) -> nn.Module:
        """The denoising network; also an attribute by its name in the pipeline, such as `unet`."""
        return getattr(self, self._adapter.component)

    @property
    def scheduler(self) -> SchedulerMixin:
        """The scheduler that states the noise schedule, with the settings of teacher, student and export."""
        return self.schedule.scheduler

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        return self._adapter.latent_shape(self.denoiser.config)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.denoiser.parameters()).device  # diffusers' own property visits every module

    @property
    def text_device(self) -> torch.device:
        """The device of the text encoders, where `encode` returns its rows; a training may put them elsewhere."""
        return next(self.text_encoders[0].parameters()).device

    # ---- encode ----

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode N prompts as N rows of conditioning; equal prompts are encoded once, too long ones are truncated.

        Text encoders in a lower precision than float32 compute in it, inside autocast too.
        """
        unique = list(dict.fromkeys(prompts))
        with self._own_precision():
            encoded = self._encode(unique)
        if len(unique) == len(prompts):
            return encoded
        row_of = {prompt: row for row, prompt in enumerate(unique)}
        rows = torch.tensor([row_of[prompt] for prompt in prompts], device="cpu")
        rows = to_device(rows, self.text_device)
        return encoded.map(lambda tensor: tensor[rows])

    def _own_precision(self) -> contextlib.AbstractContextManager:
        """No autocast for text encoders in a lower precision: it has no layer norm of mixed precisions on CPUs."""
        if self.text_encoders[0].dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.text_device.type, enabled=False)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether `encode` truncates it because it has more tokens than the text encoder takes."""
        tokenizer = self.tokenizers[0]  # where there are two, both truncate at the same token
        tokens = tokenizer(list(prompts), verbose=False).input_ids
        return [len(row) > tokenizer.model_max_length for row in tokens]

    def _tokens(self, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
        """Prompts -> tokens (N, L), int64."""
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return to_device(tokens.input_ids, self.text_device)

    # ---- solve ----

    def solver(self, steps: int, name: str = solvers.DEFAULT) -> SchedulerMixin:
        """A new solver of the ODE with its timesteps set, on the CPU.

        Schedulers of diffusers compare and look up timesteps in every step: of a GPU they would have to be read.

        Args:
            steps: number of steps.
            name: of a deterministic scheduler class of diffusers.

        Raises:
            UserError: `steps` is not between 1 and the number of training timesteps, or the class is not a solver for
                this teacher.
        """
        self.schedule.check_steps(steps)
        if name not in self._checked_solvers:
            self._checked_solvers[name] = solvers.solver(name, self.scheduler)
        solver = copy.deepcopy(self._checked_solvers[name])
        solver.set_timesteps(steps, device="cpu")
        return solver

    def network_calls(self, steps: int, solver: str = solvers.DEFAULT) -> int:
        """Number of network calls in `solve`; with guidance each has twice the rows. Errors as in `solver`."""
        return len(self.solver(steps, solver).timesteps)

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

        The network computes in its own dtype or under autocast; guidance and the solver's latent are float32.

        Args:
            noise: z, (N, C, H, W), N(0, I).
            conditioning: c, N rows, from `encode`.
            steps: number of steps; timesteps are spaced `trailing`, so the first is the last training timestep.
            guidance: w in eps = eps(z) + w (eps(z, c) - eps(z)); with 1 the unconditional half is not computed.
            on_step: called after each of the `network_calls`.
            solver: name of a deterministic scheduler class of diffusers.

        Returns:
            Latents (N, C, H, W), float32 (float64 if the network is).

        Raises:
            UserError: as in `solver`.
        """
        scheduler = self.solver(steps, solver)
        latent = solvers.initial_latent(scheduler, noise.to(_at_least_float32(self.denoiser.dtype)))  # (N, C, H, W)
        if guidance != 1:
            unconditional = self.unconditional(len(noise)).map(lambda tensor: to_device(tensor, noise.device))
            conditioning = Conditioning.cat([unconditional, conditioning])  # 2 N rows
        timesteps = to_device(scheduler.timesteps, noise.device)
        for t, network_t in zip(scheduler.timesteps, timesteps, strict=True):
            inputs = solvers.model_input(scheduler, latent, t)  # (N, C, H, W)
            prediction = self._predict(inputs, network_t, conditioning, guidance)  # (N, C, H, W)
            latent = scheduler.step(prediction, t, latent, return_dict=False)[0]
            if on_step is not None:
                on_step()
        return latent

    def _predict(self, latent: Tensor, t: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        """The guided prediction (Ho & Salimans 2022, arXiv 2207.12598): eps(z) + w (eps(z, c) - eps(z)).

        The halves are combined in float32: w multiplies their difference, and with it the rounding of 16 bits.

        Args:
            latent: (N, C, H, W), float32 or float64; the prediction has its dtype.
            conditioning: N rows if `guidance` is 1, else 2 N, the unconditional ones first.
        """
        inputs = latent.to(self.denoiser.dtype)
        if guidance == 1:
            return self._adapter.predict(self.denoiser, inputs, t, conditioning).to(latent.dtype)
        both = self._adapter.predict(self.denoiser, torch.cat([inputs, inputs]), t, conditioning)  # (2 N, C, H, W)
        unconditional, conditional = both.to(latent.dtype).chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    # ---- images ----

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, C, H / factor, W / factor), the mode of each distribution."""
        inputs = images.to(self.vae.device, self.vae.dtype, memory_format=torch.channels_last)
        return self.space.to_model(self.vae.encode(inputs).latent_dist.mode())

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> images (N, 3, H * factor, W * factor), in about [-1, 1]."""
        return self.vae.decode(self.space.to_autoencoder(latent.to(self.vae.dtype)), return_dict=False)[0]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of solver and guidance for a network of this dtype."""
    return torch.promote_types(dtype, torch.float32)
