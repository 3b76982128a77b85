"""The frozen teacher: prompts to conditioning, noise to latents by its probability-flow ODE, latents to images."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers import solvers
from diffgan.teachers.autoencoders import ImageLatents, check_channels, check_decoder_settings
from diffgan.teachers.denoiser import adapter_for
from diffgan.teachers.guidance import EMBEDDED_GUIDANCE, check_guidance, classifier_free
from diffgan.teachers.prompt_tokens import check_tokenizer, own_precision, padded_tokens, truncated
from diffgan.teachers.schedule import DDIMSchedule, NoiseSchedule
from diffgan.training.transfer import to_device


class Teacher(ImageLatents, ABC):
    """The components of a diffusers pipeline, frozen and in eval mode.

    Latents are the diffusion model's: (N, C, H, W), noise N(0, I). There is one subclass, a family, for each pipeline
    class. It provides the class attributes and the abstract members below; the rest is the same for all families.

    Attributes:
        pipeline_class: the pipeline class of diffusers.
        load_options: arguments of the pipeline's `from_pretrained`.
        components: names of the pipeline's components, as the subclass's constructor names them.
        optional: those of `components` that a pipeline may lack; the constructor then gets None.
        network_class: class of the denoising network; `diffgan.teachers.denoiser` has an adapter for it.
        schedule_class: the kind of noise schedule.
        decoder_settings: "shift_factor" or "latents_mean" if the pipeline uses that setting of its autoencoder.
        schedule: the noise schedule.
        vae, space: the autoencoder and its latent space.

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
    optional: ClassVar[tuple[str, ...]] = ()
    network_class: ClassVar[type[nn.Module]] = UNet2DConditionModel
    schedule_class: ClassVar[type[NoiseSchedule]] = DDIMSchedule
    decoder_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, vae: AutoencoderKL, denoiser: nn.Module, scheduler: SchedulerMixin):
        super().__init__(vae)
        self._adapter = adapter_for(denoiser)
        self._adapter.check(denoiser)
        self.add_module(self._adapter.component, denoiser)
        self.schedule = self.schedule_class.from_pipeline(scheduler)
        self._checked_solvers: dict[str, SchedulerMixin] = {}
        self._latent_shape = self._adapter.latent_shape(denoiser.config)
        check_channels(self.space, self._adapter.component, self.latent_shape[0])
        check_decoder_settings(self.space, self.pipeline_class.__name__, self.decoder_settings)
        for network in (vae, denoiser):
            network.to(memory_format=torch.channels_last)

    @classmethod
    def from_pipeline(cls, pipeline: DiffusionPipeline) -> "Teacher":
        """The teacher whose components are those of a pipeline.

        Raises:
            UserError: a component is missing or not supported.
        """
        components = {name: getattr(pipeline, name, None) for name in cls.components}
        missing = [name for name in cls.components if components[name] is None and name not in cls.optional]
        if missing:
            raise UserError(f"model_index.json: a {cls.pipeline_class.__name__} without {missing[0]} is not supported")
        teacher = cls(**components)
        for tokenizer, encoder in zip(teacher.tokenizers, teacher.text_encoders, strict=True):
            check_tokenizer(tokenizer, encoder.config)
        return teacher

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    # ---- what a family provides ----

    @property
    @abstractmethod
    def tokenizers(self) -> list[PreTrainedTokenizerBase]:
        """The tokenizers, in the order of `text_encoders`."""

    @property
    @abstractmethod
    def text_encoders(self) -> list[PreTrainedModel]:
        """The text encoders, in the order in which the network takes their outputs."""

    @property
    def settings(self) -> dict[str, Any]:
        """Plain JSON values that decide a latent beside weights, vocabularies, scheduler and sizes."""
        return {}

    @classmethod
    def prompt_tokens(cls, text_config: PreTrainedConfig) -> int:
        """Rows of text embeddings for one prompt, from the configuration of the first text encoder."""
        return text_config.max_position_embeddings

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditioning:
        """One row for each prompt."""

    def unconditional(self, count: int) -> Conditioning:
        """`count` rows of the conditioning that guidance uses in place of a prompt: that of the empty prompt."""
        return self.encode([""] * count)

    def as_pipeline(self) -> DiffusionPipeline:
        """A stock pipeline of the teacher's components; `export` has put a student's weights into the network."""
        return self.pipeline_class(**{name: getattr(self, name) for name in self.components})

    def in_original_layout(self) -> dict[str, Tensor]:
        """All weights by their names in one file of the original Stable Diffusion code, as other programs read it.

        Raises:
            UserError: there is no such layout for this family, or it has no place for a weight.
        """
        raise UserError(f"--single_file: a {self.pipeline_class.__name__} has no original layout; omit --single_file")

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
        """(C, H, W) of one latent: at the network's usual size, or at that given to `set_size`."""
        return self._latent_shape

    def set_size(self, height: int, width: int) -> None:
        """Make latents of images of another size than the network's usual one.

        Args:
            height, width: of images, in pixels.

        Raises:
            UserError: the network does not take that size.
        """
        self._latent_shape = self._adapter.latent_of_size(self.denoiser.config, self.space.factor, height, width)

    @property
    def guidance_kind(self) -> str:
        """How the network is guided: a constant of `diffgan.teachers.guidance`."""
        return self._adapter.guidance_kind(self.denoiser.config)

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
        with own_precision(self.text_encoders[0]):
            encoded = self._encode(unique)
        if len(unique) == len(prompts):
            return encoded
        row_of = {prompt: row for row, prompt in enumerate(unique)}
        rows = to_device(torch.tensor([row_of[prompt] for prompt in prompts], device="cpu"), self.text_device)
        return encoded.map(lambda tensor: tensor[rows])

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether `encode` truncates it because it has more tokens than the text encoder takes."""
        return truncated(self.tokenizers[0], prompts)  # where there are two, both truncate at the same token

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int | None = None) -> Tensor:
        """Prompts -> tokens (N, L), int64; `length` is L, by default the tokenizer's own."""
        tokens = padded_tokens(tokenizer, prompts, length or tokenizer.model_max_length)
        return to_device(tokens.input_ids, self.text_device)

    # ---- solve ----

    def solver(self, steps: int, name: str | None = None) -> SchedulerMixin:
        """A new solver of the ODE with its timesteps set, on the CPU.

        Schedulers of diffusers compare and look up timesteps in every step: of a GPU they would have to be read.

        Args:
            steps: number of steps.
            name: of a deterministic scheduler class of diffusers; None: the one that states the schedule.

        Raises:
            UserError: `steps` is not between 1 and the number of training timesteps, or the class is not a solver for
                this teacher.
        """
        self.schedule.check_steps(steps)
        name = name or self.schedule.own_solver
        if name not in self._checked_solvers:
            self._checked_solvers[name] = solvers.solver(name, self.scheduler)
        solver = copy.deepcopy(self._checked_solvers[name])
        tokens = self._adapter.image_tokens(self.denoiser.config, *self.latent_shape[1:])
        self.schedule.set_timesteps(solver, steps, tokens)
        return solver

    def network_calls(self, steps: int, solver: str | None = None) -> int:
        """Number of network calls in `solve`; with `cfg` guidance each has twice the rows. Errors as in `solver`."""
        return len(self.solver(steps, solver).timesteps)

    @torch.no_grad()
    def solve(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        steps: int,
        guidance: float,
        on_step: Callable[[], None] | None = None,
        solver: str | None = None,
    ) -> Tensor:
        """x = ODE(z, c, w); with classifier-free guidance both halves of it are in one batched network call.

        The network computes in its own dtype or under autocast; guidance and the solver's latent are float32.

        Args:
            noise: z, (N, C, H, W), N(0, I).
            conditioning: c, N rows, from `encode`.
            steps: number of steps; timesteps are spaced `trailing`, so the first is the last training timestep.
            guidance: w in eps = eps(z) + w (eps(z, c) - eps(z)); with 1 the unconditional half is not computed. Of a
                guidance-distilled network, its input.
            on_step: called after each of the `network_calls`.
            solver: name of a deterministic scheduler class of diffusers; None: the one that states the schedule.

        Returns:
            Latents (N, C, H, W), float32 (float64 if the network is).

        Raises:
            UserError: as in `solver` and `check_guidance`.
        """
        self.check_guidance(guidance)
        scheduler = self.solver(steps, solver)
        latent = solvers.initial_latent(
            scheduler, noise.to(torch.promote_types(self.denoiser.dtype, torch.float32))
        )  # (N, C, H, W)
        conditioning = self._guided(conditioning, guidance, noise.device)
        timesteps = to_device(scheduler.timesteps, noise.device)
        for t, network_t in zip(scheduler.timesteps, timesteps, strict=True):
            inputs = solvers.model_input(scheduler, latent, t)  # (N, C, H, W)
            prediction = self._predict(inputs, network_t, conditioning, guidance)  # (N, C, H, W)
            latent = scheduler.step(prediction, t, latent, return_dict=False)[0]
            if on_step is not None:
                on_step()
        return latent

    def check_guidance(self, guidance: float) -> None:
        """Raise a UserError if the network cannot be guided, and `guidance` is not 1."""
        check_guidance(self.guidance_kind, guidance, self.pipeline_class.__name__)

    def _guided(self, conditioning: Conditioning, guidance: float, device: torch.device) -> Conditioning:
        """The network's conditioning under guidance: its input, or an unconditional half before the conditional one."""
        if self.guidance_kind == EMBEDDED_GUIDANCE:
            return conditioning._replace(guidance=torch.full_like(conditioning.guidance, guidance))
        if guidance == 1:
            return conditioning
        unconditional = self.unconditional(len(conditioning.text)).map(lambda tensor: to_device(tensor, device))
        return Conditioning.cat([unconditional, conditioning])  # 2 N rows

    def _predict(self, latent: Tensor, t: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        """The guided prediction, with classifier-free guidance of both halves in one call.

        Args:
            latent: (N, C, H, W), float32 or float64; the prediction has its dtype.
            conditioning: from `_guided`: N rows, or 2 N.
        """
        inputs, halves = latent.to(self.denoiser.dtype), len(conditioning.text) // len(latent)
        if halves == 2:
            inputs = torch.cat([inputs, inputs])
        prediction = self._adapter.predict(self.denoiser, inputs, t, conditioning)
        prediction = prediction.to(latent.dtype)
        return prediction if halves == 1 else classifier_free(*prediction.chunk(2), guidance)
