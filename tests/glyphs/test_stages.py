"""The training stages of the glyph teacher and of its perceptual network, scaled down, through the command line."""

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline

from datamodules.glyphs import GlyphDataset, GlyphLatents
from diffgan.__main__ import main
from diffgan.glyphs.autoencoder import initialise_colour_path, psnr, whiten
from diffgan.glyphs.denoiser import stratified_timesteps
from diffgan.glyphs.tokenizer import train_tokenizer
from diffgan.perceptual.weights import load_weights
from tests.pair_sets import contents
from tests.runs import shipped_config


@pytest.fixture(scope="module")
def images():
    return GlyphDataset("validation", 100, 3).__getitems__(range(48)).image


def small_autoencoder(channels=4):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    widths = {"block_out_channels": (8, 8, 16), "norm_num_groups": 2, "latent_channels": channels}
    return AutoencoderKL(layers_per_block=1, mid_block_add_attention=False, **blocks, **widths).eval()


@torch.no_grad()
def reconstruct(autoencoder, images):
    return autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample


def test_initialised_autoencoders_reconstruct_colours(images):
    random, initialised = small_autoencoder(), small_autoencoder()
    initialise_colour_path(initialised)
    assert psnr(reconstruct(initialised, images), images) > psnr(reconstruct(random, images), images) + 3


def test_whitening_keeps_reconstructions_and_omits_unused_channels(images):
    autoencoder = small_autoencoder()
    initialise_colour_path(autoencoder, log_variance=-8.0)  # little noise ...
    with torch.no_grad():
        autoencoder.quant_conv.bias[6] = 15  # ... but much more than signal in one channel
        autoencoder.post_quant_conv.weight[:, 2] = 0  # and the decoder ignores that one
    white = whiten(autoencoder, images)
    latent = white.encode(images).latent_dist.mode()
    assert latent.shape[1] == 3
    covariance = torch.cov(latent.movedim(1, -1).flatten(0, -2).T.double())
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)
    assert latent.mean((0, 2, 3)).abs().max() < 1e-3
    before, after = reconstruct(autoencoder, images), reconstruct(white, images)
    torch.testing.assert_close(after[..., 8:-8, 8:-8], before[..., 8:-8, 8:-8], atol=2e-3, rtol=0)


def test_every_batch_covers_all_noise_levels():
    t = stratified_timesteps(50, 1000, torch.device("cpu"))
    assert torch.equal(t // 20, torch.arange(50))


def test_words_of_captions_are_single_tokens():
    tokenizer = train_tokenizer(["a bold serif capital a in dark red on cream"] * 3, length=20)
    text = "bold serif capital cream"
    assert len(tokenizer(text).input_ids) == 4 + 2
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in tokenizer("Zürich €").input_ids[1:-1]


def stage(name, folder, steps, **changes):
    """Arguments of the command line for a short run of a stage of configs/glyphs."""
    config = shipped_config(f"glyphs/{name}")
    one_process = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}
    config["trainer"] |= {"max_steps": steps, "val_check_interval": steps, **one_process}
    config["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 1}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder / "runs")
    for section, values in changes.items():
        config[section]["init_args"] |= values
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["fit", "-c", str(file)]


def test_the_stages_write_a_pipeline_of_diffusers_and_its_perceptual_network(tmp_path):
    pipeline = tmp_path / "teacher"
    few = {"batch_size": 4, "train_images": 16, "validation_images": 8}
    main(stage("autoencoder", tmp_path, 2, model={"pipeline": str(pipeline)}, data=few))
    main(stage("text_encoder", tmp_path, 2, model={"pipeline": str(pipeline)}, data=few))
    channels = AutoencoderKL.load_config(pipeline / "vae")["latent_channels"]
    latents = {"vae": str(pipeline / "vae"), "cache": str(tmp_path / "cache"), **few}
    unet = shipped_config("glyphs/denoiser")["model"]["init_args"]["unet"]
    unet |= {"in_channels": channels, "out_channels": channels, "block_out_channels": [16, 16, 16]}
    main(stage("denoiser", tmp_path, 2, model={"pipeline": str(pipeline), "unet": unet}, data=latents))
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("capital A", num_inference_steps=2).images[0].size == (64, 64)
    target = tmp_path / "vgg.safetensors"
    main(stage("latent_vgg", tmp_path, 2, model={"vae": str(pipeline / "vae"), "target": str(target)}, data=latents))
    network, space, *_ = load_weights(target)
    assert space.channels == channels and not network.training
    written = contents(pipeline), target.read_bytes()
    for name in ("autoencoder", "text_encoder", "denoiser", "latent_vgg"):
        main(["fit", "-c", str(tmp_path / f"{name}.yaml"), "--trainer.fast_dev_run", "1"])
    assert (contents(pipeline), target.read_bytes()) == written


def test_latents_are_encoded_once(tmp_path):
    small_autoencoder(channels=3).save_pretrained(tmp_path / "vae")
    data = GlyphLatents(tmp_path / "vae", tmp_path / "cache", batch_size=4, train_images=8, validation_images=4)
    data.prepare_data()
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    data.prepare_data()
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} and len(files) == 2
    batch = next(iter(data.val_dataloader()))
    assert batch.latent.shape == (4, 3, 16, 16) and len(batch.caption) == 4 and batch.label.shape == (4, 2)
