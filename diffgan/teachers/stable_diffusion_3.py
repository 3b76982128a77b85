"""Stable Diffusion 3 and 3.5: flow matching, two CLIP encoders and an optional T5, joint attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SchedulerMixin, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import register
from diffgan.teachers.flow_schedule import FlowSchedule
from diffgan.teachers.prompt_tokens import truncated
from diffgan.teachers.transformer import TransformerAdapter, check_text_widths, rows_of

MAX_T5_TOKENS = 256  # `max_sequence_length` of the stock pipeline


@register
class SD3Adapter(TransformerAdapter):
    """`SD3Transformer2DModel`."""

    network_class = SD3Transformer2DModel

    def check_size(self, config: Mapping[str, Any], height: int, width: int) -> None:
        super().check_size(config, height, width)
        largest = config["pos_embed_max_size"] * config["patch_size"]
        if max(height, width) > largest:
            raise UserError(f"a latent of {height}x{width} is larger than the network's positions, {largest}")

    def empty_conditioning(self, config: Mapping[str, Any], tokens: int) -> Conditioning:
        text = torch.empty(1, tokens, config["joint_attention_dim"])
        return Conditioning(text, pooled=torch.empty(1, config["pooled_projection_dim"]))

    def predict(
        self, network: SD3Transformer2DModel, latent: Tensor, t: Tensor | int, conditioning: Conditioning
    ) -> Tensor:
        return network(
            hidden_states=latent,
            timestep=rows_of(t, latent),
            encoder_hidden_states=conditioning.text,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]  # (N, C, H, W)


class StableDiffusion3(Teacher):
    """The components of a `StableDiffusion3Pipeline`; without T5 (`text_encoder_3`) its rows of the text are zeros.

    Raises:
        UserError: the text embeddings do not fit the network's input.
    """

    pipeline_class = StableDiffusion3Pipeline
    components = (
        *("transformer", "scheduler", "vae", "text_encoder", "tokenizer"),
        *("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    )
    optional = ("text_encoder_3", "tokenizer_3")
    network_class = SD3Transformer2DModel
    schedule_class = FlowSchedule
    decoder_settings = ("shift_factor",)

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer_2: PreTrainedTokenizerBase,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__(vae, transformer, scheduler)
        width = text_encoder.config.hidden_size + text_encoder_2.config.hidden_size
        if width > transformer.config.joint_attention_dim:
            raise UserError(
                f"transformer: joint_attention_dim is {transformer.config.joint_attention_dim}, and the two CLIP "
                f"encoders' embeddings have {width} values"
            )
        t5_width = transformer.config.joint_attention_dim if text_encoder_3 is None else text_encoder_3.config.d_model
        pooled = text_encoder.config.projection_dim + text_encoder_2.config.projection_dim
        check_text_widths(transformer, t5_width, pooled)
        self.text_encoder, self.text_encoder_2, self.text_encoder_3 = text_encoder, text_encoder_2, text_encoder_3
        self.tokenizer, self.tokenizer_2, self.tokenizer_3 = tokenizer, tokenizer_2, tokenizer_3
        self.requires_grad_(False).eval()

    @property
    def tokenizers(self) -> list[PreTrainedTokenizerBase]:
        own = [self.tokenizer, self.tokenizer_2]
        return own if self.text_encoder_3 is None else [*own, self.tokenizer_3]

    @property
    def text_encoders(self) -> list[PreTrainedModel]:
        own = [self.text_encoder, self.text_encoder_2]
        return own if self.text_encoder_3 is None else [*own, self.text_encoder_3]

    @classmethod
    def prompt_tokens(cls, text_config: PreTrainedConfig) -> int:
        return text_config.max_position_embeddings + MAX_T5_TOKENS

    def _encode(self, prompts: list[str]) -> Conditioning:
        length = self.tokenizer.model_max_length
        first, second = [
            encoder(self._tokens(tokenizer, prompts, length), output_hidden_states=True)
            for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        ]
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)  # (N, L1, D1 + D2)
        padding = self.transformer.config.joint_attention_dim - clip.shape[-1]
        text = torch.cat([F.pad(clip, (0, padding)), self._t5(prompts).to(clip.dtype)], dim=1)  # (N, L1 + L2, D)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)  # (N, P1 + P2)
        return Conditioning(text, pooled).map(lambda tensor: tensor.to(self.transformer.dtype))

    def _t5(self, prompts: list[str]) -> Tensor:
        """(N, L2, D): T5's last hidden states, padding included, as the network was trained; zeros without T5."""
        if self.text_encoder_3 is None:
            shape = (len(prompts), MAX_T5_TOKENS, self.transformer.config.joint_attention_dim)
            return torch.zeros(shape, device=self.text_device)
        return self.text_encoder_3(self._tokens(self.tokenizer_3, prompts, MAX_T5_TOKENS))[0]

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """As in the base class, by T5 if there is one: it reads more of a prompt than CLIP."""
        if self.text_encoder_3 is None:
            return super().truncated(prompts)
        return truncated(self.tokenizer_3, prompts, MAX_T5_TOKENS)
