"""The whole chain of commands for a teacher of every family: pairs, adversarial training, export, images."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffgan.__main__ import main
from diffgan.cli.pairs.verify import verify
from diffgan.errors import UserError
from diffgan.evaluation.pipeline_sampler import PipelineSampler
from diffgan.evaluation.rows import read_row
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.pairs.embeddings import Embeddings
from diffgan.pairs.pair_set import PairSet
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, TRANSFORMERS, saved, sd1
from tests.processes import run_on_two_processes
from tests.runs import (
    adversarial_settings,
    assert_same_weights,
    checkpoint,
    named,
    refused,
    use_large_adam_eps,
    write,
)
from tests.teachers.stock import load_stock, stock_latents

PROMPTS = ["digit 7", "a bold capital A in red on cream"]
MULTI_SCALE = {"class_path": "diffgan.nets.discriminator.MultiScaleDiscriminator"}
TRANSFORMER = {
    "class_path": "diffgan.nets.transformer_discriminator.TransformerDiscriminator",
    "init_args": {"depths": 2},
}


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def folder(request, tmp_path_factory):
    return saved(FAMILIES[request.param], tmp_path_factory.mktemp("chain") / request.param)


@pytest.fixture(
    scope="module", params=["sd1", "sd2", "sdxl", "pixart", "sd3", "sd3-without-t5", "flux", "flux-schnell"]
)
def family(request, tmp_path_factory):
    """A pipeline's folder, and the options that its configurations need."""
    name = request.param
    folder = saved(FAMILIES[name], tmp_path_factory.mktemp("chain") / name)
    size = {"size": [32, 32]} if name.startswith("flux") else {}  # its usual one is 1024
    guidance = {"guidance": 1.0} if name == "flux-schnell" else {}
    return folder, size, guidance, TRANSFORMER if name in TRANSFORMERS else MULTI_SCALE


def pair_config(teacher, tmp_path, **changes):
    """16 pairs of two steps in `tmp_path`/pairs."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    writer = {"folder": str(tmp_path / "pairs"), "shard_size": 8}
    return {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path),
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "callbacks.pair_writer.PairWriter", "init_args": writer}],
        },
        "model": {
            "class_path": "diffgan.pairs.generation.PairGeneration",
            "init_args": {"teacher": str(teacher), "steps": 2, "guidance": 2.0, **changes},
        },
        "data": {
            "class_path": "datamodules.prompts.Prompts",
            "init_args": {"prompts": str(tmp_path / "prompts.txt"), "pairs": 16, "seed_base": 0, "batch_size": 8},
        },
    }


def with_discriminator(config, teacher, pairs, discriminator=MULTI_SCALE):
    """24 images in batches of 8: steps of both networks, with gradient penalty and mismatched rows."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
    config["model"]["init_args"] |= {
        "teacher": str(teacher),
        "images": 24,
        "generator_optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-2}},
        "adversarial": {
            "class_path": "diffgan.methods.adversarial.AdversarialTraining",
            "init_args": {"discriminator": discriminator, "optimizer": optimizer, "warmup_images": 8, "r1_every": 2},
        },
    }
    config["data"]["init_args"] |= {"folder": str(pairs), "validation_pairs": 8}
    return config


def rounding_error(pairs):
    """Bound on twice the rounding error of latents stored in float16."""
    return 2**-10 * PairSet(pairs).read(range(16)).latent.abs().max()


def averaged_generator(run, teacher):
    generator = OneStepGenerator(teacher.denoiser, teacher.scheduler)
    weights = checkpoint(run)["state_dict"]
    prefix = "generator_ema."
    generator.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    return generator


def test_from_pairs_to_images(family, config, tmp_path):
    folder, size, guidance, discriminator = family
    main(["predict", "-c", write(tmp_path / "pairs.yaml", pair_config(folder, tmp_path, **size, **guidance))])
    verify(str(tmp_path / "pairs"), sample=4, tolerance=rounding_error(tmp_path / "pairs").item())
    training = with_discriminator(config, folder, tmp_path / "pairs", discriminator)
    training["model"]["init_args"] |= size
    training["trainer"]["callbacks"][2]["init_args"] |= guidance  # the sample grid's
    main(["fit", "-c", write(tmp_path / "fit.yaml", training)])
    main(["export", str(tmp_path / "run"), str(tmp_path / "student")])
    before, teacher = (load_teacher(str(folder), size=size.get("size")) for _ in range(2))
    pipe = load_stock(tmp_path / "student", teacher)
    noise = draw_noise([5, 6], teacher.latent_shape)
    with torch.no_grad():
        trained = averaged_generator(tmp_path / "run", teacher)(noise, teacher.encode(PROMPTS))
    torch.testing.assert_close(stock_latents(pipe, PROMPTS, noise, 1, 1.0), trained, atol=1e-4, rtol=1e-4)
    assert type(pipe) is before.pipeline_class
    assert (before.solve(noise, before.encode(PROMPTS), 1, 1.0) - trained).abs().max() > 1e-2
    main(["sample", *PROMPTS, "--student", str(tmp_path / "student"), "--output", str(tmp_path / "images")])
    files = list((tmp_path / "images").glob("*.png"))
    assert [Image.open(file).size for file in files] == [(32, 32)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pixart", "sd3", "flux"], indirect=True)
@pytest.mark.parametrize("r1", ["exact", "finite_difference"])
def test_transformers_sharded_over_two_processes_train_as_one(family, config, tmp_path, r1):
    """FSDP2 of generator and discriminator, block by block; then resumed on one process."""
    folder, size, guidance, discriminator = family
    main(["predict", "-c", write(tmp_path / "pairs.yaml", pair_config(folder, tmp_path, **size, **guidance))])
    training = with_discriminator(config, folder, tmp_path / "pairs", discriminator)
    training["model"]["init_args"] |= size
    training["trainer"]["callbacks"][2]["init_args"] |= guidance
    adversarial_settings(training).update(r1=r1, r1_samples=2)  # one for each process
    training["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 3e-3
    use_large_adam_eps(training)
    main(["fit", "-c", write(tmp_path / "fit.yaml", training)])
    together = write(tmp_path / "together.yaml", named(training, "together"))
    words = ["fit", "-c", together, "-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=2e-5, rtol=1e-4)
    for path in (tmp_path / "fit.yaml", together):
        main(["fit", "-c", str(path), "--model.init_args.images", "32"])
    assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=4e-5, rtol=1e-4)


def test_cached_embeddings_are_those_of_the_text_encoders(family, config, tmp_path):
    folder, size, guidance, _ = family
    main(["predict", "-c", write(tmp_path / "pairs.yaml", pair_config(folder, tmp_path, **size, **guidance))])
    main(["pairs", "embed", str(tmp_path / "pairs"), str(tmp_path / "embeddings")])
    teacher = load_teacher(str(folder))
    stored = Embeddings(tmp_path / "embeddings", weights_digest(teacher)).read(PROMPTS)
    for ours, theirs in zip(stored, teacher.encode(PROMPTS), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-2, rtol=2e-3)


def test_pairs_of_another_solver(folder, tmp_path, capsys):
    """The manifest names it, `verify` uses it, and pairs do not mix; a class that is no solver is refused at once."""
    words = ["predict", "-c", write(tmp_path / "pairs.yaml", pair_config(folder, tmp_path, solver="EulerDiscrete"))]

    def choose(name):
        return [*words, f"--model.init_args.solver={name}"]

    assert "solver EulerDiscrete: is not a scheduler" in refused(capsys, *words)
    assert "adds fresh noise" in refused(capsys, *choose("EulerAncestralDiscreteScheduler"))
    assert not (tmp_path / "pairs").exists()
    main(choose("HeunDiscreteScheduler"))
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert manifest["scheduler"]["solver"]["class"] == "HeunDiscreteScheduler"
    teacher = load_teacher(str(folder))
    verify(str(tmp_path / "pairs"), sample=4, tolerance=rounding_error(tmp_path / "pairs").item())
    stored = PairSet(tmp_path / "pairs").read(range(4))
    by_default = teacher.solve(stored.noise, teacher.encode(stored.prompt), 2, 2.0)
    assert (by_default - stored.latent).abs().max() > 4 * rounding_error(tmp_path / "pairs")
    assert "another pair set: scheduler is" in refused(capsys, *choose("DDIMScheduler"))


def test_a_directory_that_is_no_teacher_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    index = tmp_path / "model_index.json"
    for content, reason in {
        '{"_class_name": "KolorsPipeline"}': "is a KolorsPipeline, not a StableDiffusionPipeline or StableDiffusionXL",
        "{": "model_index.json cannot be read",
        "[1]": "model_index.json cannot be read",
    }.items():
        index.write_text(content)
        with pytest.raises(UserError, match=reason) as error:
            load_teacher(str(tmp_path))
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"teacher nobody/nothing: no such directory, .* name a directory") as error:
        load_teacher("nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("component", "change", "reason"),
    [
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean and latents_std must both"),
        ("unet", {"sample_size": None}, "sample_size is None"),
        ("scheduler", {"prediction_type": "flow"}, "prediction_type"),
    ],
)
def test_components_that_are_not_supported_are_named(folder, tmp_path, component, change, reason):
    pipe = DiffusionPipeline.from_pretrained(folder)
    getattr(pipe, component).register_to_config(**change)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=reason) as error:
        load_teacher(str(tmp_path))
    assert str(error.value).startswith(f"teacher {tmp_path}: {component}")


def test_damaged_weights_are_one_line(folder, tmp_path):
    DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="cannot be read as safetensors") as error:
        load_teacher(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, {"shift_factor": 0.1}],
    ids=["by channel", "shift"],
)
def test_settings_of_the_autoencoder_that_the_pipeline_ignores_are_refused(settings, tmp_path):
    """`StableDiffusionPipeline` decodes by `scaling_factor` alone; `StableDiffusionXLPipeline` uses both lists."""
    pipe = sd1()
    pipe.vae.register_to_config(**settings)
    pipe.save_pretrained(tmp_path)
    message = f"{next(iter(settings))}, which a StableDiffusionPipeline of diffusers does not use"
    with pytest.raises(UserError, match=message):
        load_teacher(str(tmp_path))
    row = {"name": "row", "pipeline": str(tmp_path), "steps": 1, "guidance": 1}
    with pytest.raises(UserError, match=message):
        PipelineSampler(read_row(Path(write(tmp_path / "row.yaml", row))))
