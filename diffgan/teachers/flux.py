"""FLUX.1: flow matching on 2x2 patches of the latent, T5 beside one CLIP encoder, guidance as an input or none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, SchedulerMixin
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import register
from diffgan.teachers.flow_schedule import EvenFlowSchedule
from diffgan.teachers.guidance import EMBEDDED_GUIDANCE, NO_GUIDANCE
from diffgan.teachers.prompt_tokens import truncated
from diffgan.teachers.transformer import TransformerAdapter, check_text_widths, rows_of, wider

PATCH = 2  # side of the latent's patches
MAX_TOKENS = 512  # `max_sequence_length` of the stock pipeline
LATENT_SIDE = 128  # `default_sample_size` of the stock pipeline: images of 1024 pixels
TIMESTEPS = 1000  # the network takes t / 1000


def pack(latent: Tensor) -> Tensor:
    """(N, C, H, W) -> tokens (N, H/2 W/2, 4 C): each 2x2 patch is a token, channels outermost; `unpack` reverses it."""
    return nn.functional.pixel_unshuffle(latent, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, H/2 W/2, 4 C) -> (N, C, H, W)."""
    patches = tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return nn.functional.pixel_shuffle(patches, PATCH)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """(H/2 W/2, 3): 0, row and column of each token of an (H, W) latent, for the rotary embedding."""
    rows, columns = (torch.arange(side // PATCH, device=device) for side in (height, width))
    grid = torch.cartesian_prod(rows, columns)  # (H/2 W/2, 2)
    return nn.functional.pad(grid, (1, 0))


@register
class FluxAdapter(TransformerAdapter):
    """`FluxTransformer2DModel`; the latents outside it are ordinary (N, C, H, W)."""

    network_class = FluxTransformer2DModel

    def check(self, network: FluxTransformer2DModel) -> None:
        config = network.config
        if config.patch_size != 1 or config.in_channels % PATCH**2 or network.out_channels != config.in_channels:
            raise UserError("transformer: supported are patch_size 1 and equal in_channels and out_channels, 4 x C")
        if sum(config.axes_dims_rope) != config.attention_head_dim:
            head = f"attention_head_dim, {config.attention_head_dim}"
            raise UserError(f"transformer: axes_dims_rope is {list(config.axes_dims_rope)} and must add up to {head}")

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"] // PATCH**2, LATENT_SIDE, LATENT_SIDE

    def patch(self, config: Mapping[str, Any]) -> int:
        return PATCH

    def guidance_kind(self, config: Mapping[str, Any]) -> str:
        return EMBEDDED_GUIDANCE if config["guidance_embeds"] else NO_GUIDANCE

    def empty_conditioning(self, config: Mapping[str, Any], tokens: int) -> Conditioning:
        guidance = torch.ones(1) if config["guidance_embeds"] else None
        text = torch.empty(1, tokens, config["joint_attention_dim"])
        return Conditioning(text, pooled=torch.empty(1, config["pooled_projection_dim"]), guidance=guidance)

    def predict(
        self, network: FluxTransformer2DModel, latent: Tensor, t: Tensor | int, conditioning: Conditioning
    ) -> Tensor:
        height, width = latent.shape[-2:]
        tokens = network(
            hidden_states=pack(latent),
            timestep=rows_of(t, latent).to(latent.dtype) / TIMESTEPS,
            guidance=conditioning.guidance,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.text,
            txt_ids=torch.zeros(conditioning.text.shape[1], 3, device=latent.device),
            img_ids=positions(height, width, latent.device),
            return_dict=False,
        )[0]  # (N, H/2 W/2, 4 C)
        return unpack(tokens, height, width)

    def widen_input(self, network: FluxTransformer2DModel) -> None:
        network.x_embedder = wider(network.x_embedder)

    def blocks(self, network: FluxTransformer2DModel) -> list[nn.Module]:
        return [*network.transformer_blocks, *network.single_transformer_blocks]


class Flux(Teacher):
    """The components of a `FluxPipeline`: FLUX.1-dev (guidance is an input) and FLUX.1-schnell (none).

    A student is called with guidance 1, whichever it is.
    """

    pipeline_class = FluxPipeline
    components = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    network_class = FluxTransformer2DModel
    schedule_class = EvenFlowSchedule
    decoder_settings = ("shift_factor",)

    def __init__(
        self,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: PreTrainedTokenizerBase,
        transformer: FluxTransformer2DModel,
    ):
        super().__init__(vae, transformer, scheduler)
        check_text_widths(transformer, text_encoder_2.config.d_model, text_encoder.config.hidden_size)
        self.text_encoder, self.text_encoder_2 = text_encoder, text_encoder_2
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2
        self.requires_grad_(False).eval()

    @property
    def tokenizers(self) -> list[PreTrainedTokenizerBase]:
        return [self.tokenizer, self.tokenizer_2]

    @property
    def text_encoders(self) -> list[PreTrainedModel]:
        return [self.text_encoder, self.text_encoder_2]

    @classmethod
    def prompt_tokens(cls, text_config: PreTrainedConfig) -> int:
        return MAX_TOKENS

    def _encode(self, prompts: list[str]) -> Conditioning:
        pooled = self.text_encoder(self._tokens(self.tokenizer, prompts)).pooler_output  # (N, P)
        text = self.text_encoder_2(self._tokens(self.tokenizer_2, prompts, MAX_TOKENS))[0]  # (N, L, D)
        encoded = Conditioning(text, pooled).map(lambda tensor: tensor.to(self.transformer.dtype))
        if self.guidance_kind == NO_GUIDANCE:
            return encoded
        return encoded._replace(guidance=torch.ones(len(prompts), device=self.text_device))

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """As in the base class, by T5, which reads more of a prompt than CLIP."""
        return truncated(self.tokenizer_2, prompts, MAX_TOKENS)
