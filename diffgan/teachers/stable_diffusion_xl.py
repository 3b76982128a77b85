"""Stable Diffusion XL: two text encoders, their penultimate hidden states, a pooled embedding, sizes and crop."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import NUM_SIZES, check_text_width
from diffgan.teachers.original_layout.autoencoder import autoencoder_weights
from diffgan.teachers.original_layout.names import joined
from diffgan.teachers.original_layout.text_encoders import clip_weights, open_clip_weights
from diffgan.teachers.original_layout.unet import unet_weights


class StableDiffusionXL(Teacher):
    """The components of a `StableDiffusionXLPipeline`.

    Args:
        force_zeros_for_empty_prompt: from the pipeline's configuration. The unconditional half of guidance has zeros in
            place of the text and the pooled embedding if true, those of the empty prompt if false.

    Raises:
        UserError: the network does not take the pooled embedding and the sizes, or in another width.
    """

    pipeline_class = StableDiffusionXLPipeline
    components = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    decoder_settings = ("latents_mean",)

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
        _check_added_conditioning(unet, text_encoder_2)
        check_text_width(unet, text_encoder.config.hidden_size + text_encoder_2.config.hidden_size)
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.requires_grad_(False).eval()

    @classmethod
    def from_pipeline(cls, pipeline: DiffusionPipeline) -> "StableDiffusionXL":
        teacher = super().from_pipeline(pipeline)
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
        first, second = [
            encoder(self._tokens(tokenizer, prompts), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True)
        ]
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)  # (N, L, D1 + D2)
        pooled = second.text_embeds  # (N, P)
        conditioning = Conditioning(text, pooled, self._sizes(len(prompts)))
        return conditioning.map(lambda tensor: tensor.to(self.unet.dtype))

    def _sizes(self, count: int) -> Tensor:
        """Sizes (N, 6) in pixels: original height and width, top and left of the crop, target height and width."""
        height, width = (side * self.space.factor for side in self.latent_shape[1:])
        return torch.tensor([[height, width, 0, 0, height, width]] * count, device=self.text_device)

    def unconditional(self, count: int) -> Conditioning:
        """`count` rows of zeros or of the empty prompt (`force_zeros_for_empty_prompt`), with the usual sizes."""
        empty = self.encode([""] * count)
        if not self.force_zeros_for_empty_prompt:
            return empty
        return empty._replace(text=torch.zeros_like(empty.text), pooled=torch.zeros_like(empty.pooled))

    def as_pipeline(self) -> StableDiffusionXLPipeline:
        components = {name: getattr(self, name) for name in self.components}
        return StableDiffusionXLPipeline(**components, **self.settings)

    def in_original_layout(self) -> dict[str, Tensor]:
        """As the files of SDXL, whose second text encoder has open_clip's names."""
        return joined(
            {
                "model.diffusion_model.": unet_weights(self.unet),
                "first_stage_model.": autoencoder_weights(self.vae),
                "conditioner.embedders.0.transformer.": clip_weights(self.text_encoder),
                "conditioner.embedders.1.model.": open_clip_weights(self.text_encoder_2),
            }
        )


def _check_added_conditioning(unet: UNet2DConditionModel, text_encoder: CLIPTextModelWithProjection) -> None:
    """Raise a UserError if the network does not take the pooled embedding and the sizes."""
    config = unet.config
    if config.addition_embed_type != "text_time":
        raise UserError(f"unet: addition_embed_type is {config.addition_embed_type!r} and must be 'text_time'")
    width = text_encoder.config.projection_dim + NUM_SIZES * config.addition_time_embed_dim
    if config.projection_class_embeddings_input_dim != width:
        raise UserError(
            f"unet: projection_class_embeddings_input_dim is {config.projection_class_embeddings_input_dim} and must "
            f"be {width}, the width of text_encoder_2's pooled embedding and of the sizes"
        )
