"""The original layout against the names of the released files, and as diffusers reads it."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffgan.errors import UserError
from diffgan.memory.networks import skeleton_teacher
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from diffgan.teachers.stable_diffusion import StableDiffusion
from tests.pipelines import FAMILIES, autoencoder, saved, sd1, unet

CAPTIONS = ["digit 7", "a bold capital A in red on cream"]

# Names and shapes of the released files of SD1.5 and SDXL, in the size of those models.
UNET = "model.diffusion_model."
SD15 = {
    f"{UNET}time_embed.2.weight": (1280, 1280),
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    f"{UNET}input_blocks.3.0.op.weight": (320, 320, 3, 3),
    f"{UNET}input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    f"{UNET}input_blocks.11.0.emb_layers.1.bias": (1280,),
    f"{UNET}middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
    f"{UNET}middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
    f"{UNET}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    f"{UNET}output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    f"{UNET}output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
    f"{UNET}out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.mid.block_2.conv1.weight": (512, 512, 3, 3),
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.decoder.norm_out.weight": (128,),
    "first_stage_model.post_quant_conv.weight": (4, 4, 1, 1),
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}
FIRST, SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
SDXL = {
    f"{UNET}label_emb.0.0.weight": (1280, 2816),
    f"{UNET}input_blocks.4.1.proj_in.weight": (640, 640),
    f"{UNET}input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight": (1280, 2048),
    f"{UNET}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
    f"{UNET}output_blocks.5.2.conv.weight": (640, 640, 3, 3),
    f"{UNET}output_blocks.8.0.in_layers.0.weight": (640,),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    f"{FIRST}encoder.layers.11.self_attn.q_proj.weight": (768, 768),
    f"{SECOND}positional_embedding": (77, 1280),
    f"{SECOND}token_embedding.weight": (49408, 1280),
    f"{SECOND}text_projection": (1280, 1280),
    f"{SECOND}ln_final.weight": (1280,),
    f"{SECOND}transformer.resblocks.9.mlp.c_proj.bias": (1280,),
    f"{SECOND}transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
    f"{SECOND}transformer.resblocks.31.attn.out_proj.weight": (1280, 1280),
    f"{SECOND}transformer.resblocks.0.ln_1.weight": (1280,),
}
# Tensors by the beginning of their names. Left out are buffers that hold no weights: position_ids and logit_scale.
SIZES = {
    "sd15": {UNET: 686, "first_stage_model.": 248, "cond_stage_model.": 196},
    "sdxl": {UNET: 1680, "first_stage_model.": 248, FIRST: 196, SECOND: 389},
}


@pytest.mark.parametrize(("name", "known"), [("sd15", SD15), ("sdxl", SDXL)])
def test_names_and_shapes_are_those_of_the_released_files(name, known):
    weights = skeleton_teacher(f"tests/data/pipelines/{name}").in_original_layout()
    assert {key: tuple(weights[key].shape) for key in known if key in weights} == known
    assert {prefix: sum(key.startswith(prefix) for key in weights) for prefix in SIZES[name]} == SIZES[name]
    assert len(weights) == sum(SIZES[name].values())


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_diffusers_reads_the_same_pipeline_from_it(name, tmp_path):
    folder = saved(FAMILIES[name], tmp_path / name)
    teacher, file = load_teacher(str(folder)), tmp_path / "student.safetensors"
    layout = {key: weight.contiguous() for key, weight in teacher.in_original_layout().items()}
    save_file(layout, file)
    stock = teacher.as_pipeline()
    single = type(stock).from_single_file(str(file), config=str(folder), local_files_only=True)
    single.scheduler = stock.scheduler
    networks = [name for name, part in stock.components.items() if isinstance(part, torch.nn.Module)]
    for network in networks:
        expected, found = getattr(stock, network).state_dict(), getattr(single, network).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), network
    numbers = sum(weight.numel() for network in networks for weight in getattr(stock, network).state_dict().values())
    with safe_open(file, "pt") as tensors:
        assert sum(tensors.get_tensor(key).numel() for key in tensors.keys()) == numbers  # noqa: SIM118
    torch.testing.assert_close(images(single), images(stock), atol=1e-5, rtol=0)


def images(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = draw_noise([0, 1], (4, 8, 8))
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": noise, "output_type": "pt"}
    return pipeline(CAPTIONS, **options).images


def test_sd2_is_refused():
    """Its released file has a layer of the text encoder that the pipeline lacks."""
    teacher = StableDiffusion.from_pipeline(FAMILIES["sd2"]())
    with pytest.raises(UserError, match=r"--single_file: SD2\.x"):
        teacher.in_original_layout()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"unet": lambda: unet(layers_per_block=(1, 2))}, "unet: blocks of different depths"),
        ({"unet": lambda: unet(down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"))}, "a SimpleCrossAttn"),
        ({"unet": lambda: unet(encoder_hid_dim=16)}, "unet: encoder_hid_proj.weight has no place"),
        ({"vae": lambda: autoencoder(mid_block_add_attention=False)}, "vae: has no attention"),
    ],
    ids=["depths", "blocks", "names", "attention"],
)
def test_what_the_layout_has_no_place_for_is_refused(network, message):
    pipeline = sd1()
    for name, build in network.items():
        pipeline.register_modules(**{name: build()})
    with pytest.raises(UserError, match=message):
        StableDiffusion.from_pipeline(pipeline).in_original_layout()
