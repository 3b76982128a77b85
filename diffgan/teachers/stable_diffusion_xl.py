"""Stable Diffusion XL: two text encoders, their penultimate hidden states, a pooled embedding, sizes and crop."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.base import Teacher


class StableDiffusionXL(Teacher):
    """The parts of a `StableDiffusionXLPipeline`.

    force_zeros_for_empty_prompt: of the pipeline's configuration; without a prompt the network is told zeros, or else
        the empty prompt.

    Raises:
        UserError: the pooled embedding and the sizes are not as wide as the network takes them.
    """

    pipeline_class = StableDiffusionXLPipeline
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        force_zeros_for_empty_prompt: bool = True,
    ):
        super().__init__(vae, unet, scheduler)
        _check_added(unet, text_encoder_2)
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, pipeline: DiffusionPipeline) -> "StableDiffusionXL":
        teacher = super().of(pipeline)
        teacher.force_zeros_for_empty_prompt = pipeline.config.force_zeros_for_empty_prompt
        return teacher

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        return [self.tokenizer, self.tokenizer_2]

    @property
    def text_encoders(self) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
        return [self.text_encoder, self.text_encoder_2]

    @property
    def settings(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self.force_zeros_for_empty_prompt}

    def _encode(self, prompts: list[str]) -> Conditioning:
        said = [
            encoder(self._tokens(tokenizer, prompts), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True)
        ]
        text = torch.cat([output.hidden_states[-2] for output in said], dim=-1)  # (N, L, D1 + D2)
        return Conditioning(text, said[1].text_embeds, self._sizes(len(prompts))).map(lambda c: c.to(self.unet.dtype))

    def _sizes(self, count: int) -> Tensor:
        """(N, 6) in pixels: original height and width, the crop's top and left, target height and width."""
        side = self.unet.config.sample_size * self.space.factor
        return torch.tensor([[side, side, 0, 0, side, side]] * count, device=self.device)

    def unconditional(self, count: int) -> Conditioning:
        """Zeros in place of text and pooled embedding, or the empty prompt; the sizes stay."""
        empty = self.encode([""] * count)
        if not self.force_zeros_for_empty_prompt:
            return empty
        return empty._replace(text=torch.zeros_like(empty.text), pooled=torch.zeros_like(empty.pooled))

    def as_pipeline(self) -> StableDiffusionXLPipeline:
        parts = {name: getattr(self, name) for name in self.parts}
        return StableDiffusionXLPipeline(**parts, **self.settings)


def _check_added(unet: UNet2DConditionModel, text_encoder: CLIPTextModelWithProjection) -> None:
    """Raises UserError if the network does not take the pooled embedding and six sizes."""
    if unet.config.addition_embed_type != "text_time":
        raise UserError(f"unet: addition_embed_type is {unet.config.addition_embed_type!r} and must be 'text_time'")
    given = text_encoder.config.projection_dim + 6 * unet.config.addition_time_embed_dim
    if (taken := unet.config.projection_class_embeddings_input_dim) != given:
        raise UserError(f"unet: projection_class_embeddings_input_dim is {taken}, but encoder and sizes give {given}")
