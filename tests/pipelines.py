"""Tiny random pipelines of every family, small enough for every test: 32x32 images, 8x8 latents."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffgan.glyphs.tokenizer import train_tokenizer

CAPTIONS = ["a bold capital A in red on cream", "digit 7"]
SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    words = train_tokenizer(CAPTIONS, length=16)
    words.pad_token = pad_token
    return words


def text_config(words: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **ids, **(small | changes))


def unet(**changes: Any) -> UNet2DConditionModel:
    small = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }
    return UNet2DConditionModel(**(small | changes))


def autoencoder(**changes: Any) -> AutoencoderKL:
    small = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return AutoencoderKL(**(small | changes))


def miniature() -> StableDiffusionPipeline:
    """As the glyph teacher: v-prediction, the linear schedule of DDIM."""
    words = tokenizer()
    config = text_config(words)
    return StableDiffusionPipeline(
        unet=unet(),
        vae=autoencoder(),
        text_encoder=CLIPTextModel(config),
        tokenizer=words,
        scheduler=DDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, steps_offset=1
        ),
        **WITHOUT_CHECKER,
    )


def sd1() -> StableDiffusionPipeline:
    """SD1.x: epsilon prediction, attention at the fine scales."""
    words = tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(words, num_hidden_layers=2, hidden_act="quick_gelu")),
        tokenizer=words,
        unet=unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
        ),
        scheduler=PNDMScheduler(**SCALED_LINEAR, skip_prk_steps=True, set_alpha_to_one=False),
        **WITHOUT_CHECKER,
    )


def sd2() -> StableDiffusionPipeline:
    """SD2.x: v-prediction, heads by level, linear projections, a text encoder with another activation."""
    words = tokenizer(pad_token="!</w>")
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(words, num_hidden_layers=2, hidden_act="gelu")),
        tokenizer=words,
        unet=unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(1, 2),
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(
            **SCALED_LINEAR, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        **WITHOUT_CHECKER,
    )


def sdxl(force_zeros_for_empty_prompt: bool = True) -> StableDiffusionXLPipeline:
    """Two text encoders of different widths and paddings, pooled embedding and sizes."""
    first, second = tokenizer(), tokenizer(pad_token="!</w>")
    wide = {"hidden_size": 24, "num_hidden_layers": 3, "projection_dim": 12, "hidden_act": "gelu"}
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(text_config(first, num_hidden_layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(second, **wide)),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            cross_attention_dim=40,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 12,
        ),
        scheduler=EulerDiscreteScheduler(**SCALED_LINEAR, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
    )


def sdxl_with_empty_prompt() -> StableDiffusionXLPipeline:
    """SDXL whose guidance uses the empty prompt, not zeros, and whose latents are scaled channel by channel."""
    pipeline = sdxl(force_zeros_for_empty_prompt=False)
    statistics = {"latents_mean": [-1.6, 1.1, 0.4, -0.2], "latents_std": [8.4, 5.9, 5.0, 0.7]}
    pipeline.vae.register_to_config(**statistics)
    return pipeline


def t5_tokenizer(length: int) -> T5Tokenizer:
    """Single characters and a few words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = sorted({"\u2581" + word.lower() for caption in CAPTIONS for word in caption.split()})
    characters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = [(word, -1.0) for word in words] + [(character, -3.0) for character in characters]
    return T5Tokenizer(vocab=special + vocabulary, extra_ids=0, model_max_length=length)


def t5(words: T5Tokenizer, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    )


def pixart() -> PixArtSigmaPipeline:
    """Epsilon and a variance at the output, T5 with a mask."""
    words = t5_tokenizer(300)
    return PixArtSigmaPipeline(
        tokenizer=words,
        text_encoder=t5(words, 16),
        vae=autoencoder(scaling_factor=0.13025),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=3,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=16,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", solver_order=2, prediction_type="epsilon"
        ),
    )


def sd3(with_t5: bool = True) -> StableDiffusion3Pipeline:
    """Three text encoders of different widths, a shifted flow, 16 channels with a shift."""
    first, second, third = tokenizer(), tokenizer(pad_token="!</w>"), t5_tokenizer(256)
    small = {"num_hidden_layers": 3, "projection_dim": 12}
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(text_config(first, **small)),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(text_config(second, hidden_size=24, hidden_act="gelu", **small)),
        tokenizer_2=second,
        text_encoder_3=t5(third, 48) if with_t5 else None,
        tokenizer_3=third if with_t5 else None,
    )


def sd3_without_t5() -> StableDiffusion3Pipeline:
    """SD3 without its third text encoder."""
    return sd3(with_t5=False)


def flux(guidance: bool = True) -> FluxPipeline:
    """FLUX.1: packed latents, guidance as an input, a shift that depends on the size."""
    first, second = tokenizer(), t5_tokenizer(512)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0),
        vae=autoencoder(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False),
        text_encoder=CLIPTextModel(text_config(first, num_hidden_layers=2)),
        tokenizer=first,
        text_encoder_2=t5(second, 32),
        tokenizer_2=second,
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=guidance,
        ),
    )


def flux_schnell() -> FluxPipeline:
    """FLUX.1-schnell: no guidance, no shift."""
    return flux(guidance=False)


UNETS = {"miniature": miniature, "sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sdxl-empty": sdxl_with_empty_prompt}
TRANSFORMERS = {
    "pixart": pixart,
    "sd3": sd3,
    "sd3-without-t5": sd3_without_t5,
    "flux": flux,
    "flux-schnell": flux_schnell,
}
FAMILIES = UNETS | TRANSFORMERS


def saved(build, folder: Path, seed: int = 0) -> Path:
    """Save a pipeline with random weights of this seed; returns its directory."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline: DiffusionPipeline = build()
        pipeline.save_pretrained(folder)
    return folder


class _Untrained(FeatureExtractorInceptionV3):
    def load_state_dict(self, *_) -> None:
        """Keep the random weights of the initialisation."""


def random_inception(file: Path) -> FeatureExtractorInceptionV3:
    """FID's Inception with random weights, which are saved in `file`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({}, file)
        network = _Untrained("inception", ["2048"], file)
    torch.save(network.state_dict(), file)
    return network
