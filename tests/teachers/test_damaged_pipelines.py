"""Pipelines that lack something or hold something else: one line that names it, and no random weights in its place."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffgan.errors import UserError
from diffgan.teachers.autoencoders import load_autoencoder
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import load_teacher
from tests.pair_sets import refusal
from tests.pipelines import saved, sdxl

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def pipeline(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline that a test may change."""
    return shutil.copytree(tiny_pipeline, tmp_path / "pipeline")


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory):
    return saved(sdxl, tmp_path_factory.mktemp("sdxl"))


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})


def drop(file, name):
    return lambda folder: change_tensors(folder / file, lambda tensors: tensors.pop(name))


def cut(file, name):
    return lambda folder: change_tensors(folder / file, lambda tensors: tensors.update({name: tensors[name][:1]}))


def setting(file, **changes):
    return lambda folder: change_json(folder / file, **changes)


def text(file, content):
    return lambda folder: (folder / file).write_text(content)


def truncate(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


def remove(name):
    def change(folder):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


TOKENS = "embeddings.token_embedding.weight"
DAMAGE = [
    (drop(UNET, "conv_in.weight"), f"{UNET}: tensor conv_in.weight is missing"),
    (drop(VAE, "decoder.conv_out.bias"), f"{VAE}: tensor decoder.conv_out.bias is missing"),
    (cut(UNET, "conv_in.weight"), f"{UNET}: tensor conv_in.weight has shape (1, 4, 3, 3) and not (8, 4, 3, 3)"),
    (truncate(VAE), f"{VAE}: cannot be read as safetensors"),
    (text(UNET, "no tensors"), f"{UNET}: cannot be read as safetensors"),
    (remove(TEXT), f"{TEXT} is missing"),
    (remove("tokenizer"), "the folder tokenizer is missing"),
    (remove("unet/config.json"), "unet/config.json is missing"),
    (text("unet/config.json", DEEP), "unet/config.json: cannot be read (JSON nested too deeply)"),
    (text("tokenizer/tokenizer_config.json", "[]"), "tokenizer/tokenizer_config.json: cannot be read (no JSON object)"),
    (text("model_index.json", DEEP), "model_index.json cannot be read (JSON nested too deeply)"),
    (setting("model_index.json", _class_name=["a", "b"]), "model_index.json cannot be read (_class_name is"),
    (setting("model_index.json", _class_name=None), "is a None, not a StableDiffusionPipeline"),
    (setting("model_index.json", unet=None), "a pipeline without unet is not supported"),
    (setting("model_index.json", unet=["diffusers", "AutoencoderKL"]), "unet is a diffusers.AutoencoderKL and must be"),
    (setting("model_index.json", vae=["os", "system"]), "vae is a os.system and must be a AutoencoderKL"),
    (
        setting("model_index.json", text_encoder=["transformers", "CLIPTextModelWithProjection"]),
        "must be a CLIPTextMod",
    ),
    (setting("unet/config.json", sample_size=0), "sample_size is 0 and must be an integer between 1 and 4096"),
    (setting("unet/config.json", sample_size=10**9), "sample_size is 1000000000 and must be"),
    (setting("unet/config.json", layers_per_block=10**9), "layers_per_block is 1000000000, more than the"),
    (setting("unet/config.json", block_out_channels=[8, 10**7]), "has shape"),
    (setting("unet/config.json", block_out_channels="wide"), "unet/config.json: is no configuration of a UNet2D"),
    (setting("unet/config.json", num_class_embeds=3), "class_embed"),
    (setting("vae/config.json", scaling_factor=math.nan), "scale of latents (scaling_factor, shift_factor) is nan"),
    (setting("vae/config.json", scaling_factor=0), "is 0 and must be a finite number other than 0"),
    (setting("vae/config.json", shift_factor="0"), "shift of latents (scaling_factor, shift_factor) is '0'"),
    (setting("text_encoder/config.json", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    (setting("text_encoder/config.json", vocab_size=3), "token_embedding.weight has shape"),
    (setting("tokenizer/tokenizer_config.json", model_max_length=99), "model_max_length is 99, but its text encoder"),
    (setting("scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps is 1000000000000"),
]


@pytest.mark.parametrize("damage, message", DAMAGE, ids=[message for _, message in DAMAGE])
def test_each_is_refused_by_name(damage, message, pipeline, tmp_path, capsys):
    damage(pipeline)
    line = refusal(capsys, ["sample", "digit 7", "--student", str(pipeline), "--output", str(tmp_path / "out")])
    assert line.startswith(f"diffgan: error: teacher {pipeline}: ") and message in line
    assert not (tmp_path / "out").exists()


def test_a_missing_weight_of_a_text_encoder_is_not_made_up(pipeline):
    names = [name for name in load_file(pipeline / TEXT) if name.endswith("self_attn.q_proj.weight")]
    drop(TEXT, names[0])(pipeline)
    with pytest.raises(UserError, match=r"self_attn\.q_proj\.weight is missing"):
        load_teacher(str(pipeline))


def test_tokens_without_an_embedding_are_refused(pipeline):
    vocabulary = len(load_teacher(str(pipeline)).tokenizers[0])
    name = next(name for name in load_file(pipeline / TEXT) if name.endswith(TOKENS))
    change_tensors(pipeline / TEXT, lambda tensors: tensors.update({name: tensors[name][: vocabulary - 5]}))
    change_json(pipeline / "text_encoder" / "config.json", vocab_size=vocabulary - 5)
    with pytest.raises(
        UserError, match=f"has token number {vocabulary - 1}, but its text encoder has {vocabulary - 5}"
    ):
        load_teacher(str(pipeline))


@pytest.mark.parametrize("missing", ["text_encoder_2", "tokenizer_2"])
def test_sdxl_without_a_second_text_encoder_is_refused(missing, tiny_sdxl, tmp_path):
    folder = shutil.copytree(tiny_sdxl, tmp_path / "sdxl")
    change_json(folder / "model_index.json", **{missing: [None, None]})
    with pytest.raises(UserError, match=f"a pipeline without {missing} is not supported"):
        load_teacher(str(folder))


def test_the_parts_of_sdxl_are_no_stable_diffusion(tiny_sdxl, tmp_path):
    folder = shutil.copytree(tiny_sdxl, tmp_path / "sdxl")
    change_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(UserError, match="addition_embed_type is 'text_time', which only a StableDiffusionXLPipeline"):
        load_teacher(str(folder))


@pytest.mark.parametrize("file, value", [(UNET, math.nan), (TEXT, math.inf)])
def test_weights_that_are_not_finite_have_no_digest(file, value, pipeline):
    name = sorted(load_file(pipeline / file))[0]
    change_tensors(pipeline / file, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(UserError, match=rf"{name.removeprefix('text_model.')} of its \w+ is not finite"):
        weights_digest(load_teacher(str(pipeline)))


def test_a_pipeline_in_several_files_is_read(pipeline):
    expected = load_teacher(str(pipeline))
    expected.denoiser.save_pretrained(pipeline / "unet", max_shard_size="50KB")
    (pipeline / UNET).unlink()
    assert (pipeline / f"{UNET}.index.json").is_file()
    assert weights_digest(load_teacher(str(pipeline))) == weights_digest(expected)
    part = sorted((pipeline / "unet").glob("*-of-*.safetensors"))[0]
    name = sorted(load_file(part))[0]
    change_tensors(part, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=f"tensor {name} is missing"):
        load_teacher(str(pipeline))


def test_attention_named_as_in_early_versions_of_diffusers_is_read(pipeline):
    expected = load_autoencoder(pipeline / "vae").state_dict()
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in list(tensors):
            for now, before in earlier.items():
                if f".{now}." in name:
                    tensors[name.replace(now, before)] = tensors.pop(name)

    change_tensors(pipeline / VAE, rename)
    found = load_autoencoder(pipeline / "vae").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_an_autoencoder_that_lacks_a_tensor_is_refused(pipeline):
    drop(VAE, "encoder.conv_in.bias")(pipeline)
    with pytest.raises(UserError, match=r"vae .*tensor encoder\.conv_in\.bias is missing"):
        load_autoencoder(pipeline / "vae")
