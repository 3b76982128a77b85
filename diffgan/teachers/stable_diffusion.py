"""Stable Diffusion 1.x and 2.x, and the glyph teacher: one text encoder, its last hidden states."""

from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import check_text_width
from diffgan.teachers.original_layout.autoencoder import autoencoder_weights
from diffgan.teachers.original_layout.names import joined
from diffgan.teachers.original_layout.text_encoders import clip_weights
from diffgan.teachers.original_layout.unet import unet_weights


class StableDiffusion(Teacher):
    """The components of a `StableDiffusionPipeline`."""

    pipeline_class = StableDiffusionPipeline
    load_options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012
    components = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
    ):
        super().__init__(vae, unet, scheduler)
        if unet.config.addition_embed_type is not None:
            kind = repr(unet.config.addition_embed_type)
            raise UserError(f"unet: addition_embed_type is {kind}, which only a StableDiffusionXLPipeline can provide")
        check_text_width(unet, text_encoder.config.hidden_size)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.requires_grad_(False).eval()

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        return [self.tokenizer]

    @property
    def text_encoders(self) -> list[CLIPTextModel]:
        return [self.text_encoder]

    def _encode(self, prompts: list[str]) -> Conditioning:
        text = self.text_encoder(self._tokens(self.tokenizer, prompts))[0]  # (N, L, D)
        return Conditioning(text.to(self.unet.dtype))

    def as_pipeline(self) -> StableDiffusionPipeline:
        components = {name: getattr(self, name) for name in self.components}
        return StableDiffusionPipeline(
            **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    def in_original_layout(self) -> dict[str, Tensor]:
        """As the files of SD1.x; those of SD2.x have a last layer of the text encoder that its pipelines lack."""
        if self.unet.config.use_linear_projection:
            raise UserError("--single_file: SD2.x cannot be written, its pipelines lack a layer; omit --single_file")
        return joined(
            {
                "model.diffusion_model.": unet_weights(self.unet),
                "first_stage_model.": autoencoder_weights(self.vae),
                "cond_stage_model.transformer.": clip_weights(self.text_encoder),
            }
        )
