"""PixArt-Sigma: a transformer that predicts epsilon, text by T5 with a mask, the latent space of SDXL."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel, SchedulerMixin
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, T5EncoderModel

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import register
from diffgan.teachers.prompt_tokens import padded_tokens, truncated
from diffgan.teachers.transformer import TransformerAdapter, check_text_widths, rows_of
from diffgan.training.transfer import to_device

MAX_TOKENS = 300  # `max_sequence_length` of the stock pipeline


@register
class PixArtAdapter(TransformerAdapter):
    """`PixArtTransformer2DModel`. Its output also has a variance for each channel, which sampling does not use."""

    network_class = PixArtTransformer2DModel

    def check(self, network: PixArtTransformer2DModel) -> None:
        super().check(network)
        if network.use_additional_conditions:
            raise UserError("transformer: use_additional_conditions (PixArt-Alpha) is not supported")
        if network.config.out_channels not in (network.config.in_channels, 2 * network.config.in_channels):
            raise UserError("transformer: out_channels must be in_channels, or twice as many")

    def remove_output(self, network: PixArtTransformer2DModel) -> None:
        super().remove_output(network)
        table = network.scale_shift_table.detach()
        del network.scale_shift_table
        network.register_buffer("scale_shift_table", table, persistent=False)  # `forward` reads it

    def empty_conditioning(self, config: Mapping[str, Any], tokens: int) -> Conditioning:
        text = torch.empty(1, tokens, config["caption_channels"])
        return Conditioning(text, mask=torch.empty(1, tokens, dtype=torch.bool))

    def predict(
        self, network: PixArtTransformer2DModel, latent: Tensor, t: Tensor | int, conditioning: Conditioning
    ) -> Tensor:
        output = network(
            latent,
            encoder_hidden_states=conditioning.text,
            encoder_attention_mask=conditioning.mask,
            timestep=rows_of(t, latent),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]  # (N, C or 2 C, H, W)
        return output[:, : latent.shape[1]]


class PixArtSigma(Teacher):
    """The components of a `PixArtSigmaPipeline`.

    Prompts are in lower case and stripped, as in the stock pipeline with `clean_caption=False` (its default cleans them
    further where beautifulsoup4 is installed).
    """

    pipeline_class = PixArtSigmaPipeline
    components = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    network_class = PixArtTransformer2DModel

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKL,
        transformer: PixArtTransformer2DModel,
        scheduler: SchedulerMixin,
    ):
        super().__init__(vae, transformer, scheduler)
        check_text_widths(transformer, text_encoder.config.d_model)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.requires_grad_(False).eval()

    @property
    def tokenizers(self) -> list[PreTrainedTokenizerBase]:
        return [self.tokenizer]

    @property
    def text_encoders(self) -> list[T5EncoderModel]:
        return [self.text_encoder]

    @classmethod
    def prompt_tokens(cls, text_config: PreTrainedConfig) -> int:
        return MAX_TOKENS

    def _encode(self, prompts: list[str]) -> Conditioning:
        tokens = padded_tokens(self.tokenizer, [_cleaned(prompt) for prompt in prompts], MAX_TOKENS)
        ids, mask = (to_device(tensor, self.text_device) for tensor in (tokens.input_ids, tokens.attention_mask))
        text = self.text_encoder(ids, attention_mask=mask)[0]  # (N, L, D)
        return Conditioning(text.to(self.transformer.dtype), mask=mask.bool())

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        return truncated(self.tokenizer, [_cleaned(prompt) for prompt in prompts], MAX_TOKENS)


def _cleaned(prompt: str) -> str:
    return prompt.lower().strip()
