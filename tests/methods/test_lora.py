"""Training with LoRA adapters: what is shared, what moves, what is saved, how it resumes."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from diffgan.__main__ import main
from diffgan.nets.generator import OneStepGenerator
from diffgan.nets.lora import LoRA, with_adapters
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
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

ADAPTERS = {"rank": 2, "alpha": 4.0}


@pytest.fixture
def lora_config(adversarial_config):
    arguments = adversarial_config["model"]["init_args"]
    arguments["lora"] = ADAPTERS
    adversarial_settings(adversarial_config)["discriminator"]["init_args"] = {"lora": ADAPTERS}
    return adversarial_config


def test_checkpoints_hold_adapters_and_added_layers_alone(lora_config, tmp_path, tiny_pipeline):
    main(["fit", "-c", write(tmp_path / "fit.yaml", lora_config)])
    weights = checkpoint(tmp_path / "run")["state_dict"]
    added = ("lora_A", "lora_B", "noise_in", "latent_in", "heads")
    assert all(any(part in name for part in added) for name in weights)
    assert {name.split(".")[0] for name in weights} == {"generator", "generator_ema", "discriminator"}
    moved = [name for name in weights if "lora_B" in name and weights[name].abs().max() > 0]
    assert {name.split(".")[0] for name in moved} == {"generator", "generator_ema", "discriminator"}
    before = sum(weight.numel() for weight in load_teacher(str(tiny_pipeline)).denoiser.parameters())
    assert sum(weights[name].numel() for name in weights if name.startswith("generator.")) < before / 2


class SharedWeights(pl.Callback):
    """Checks at the end of a training that no weight of the teacher was copied, changed or given a gradient."""

    def __init__(self, teacher: str):
        self.teacher = teacher

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert all(weight.grad is None for weight in pl_module.teacher.denoiser.parameters())

    def on_train_end(self, trainer, pl_module):
        own, original = pl_module.teacher.denoiser.state_dict(), load_teacher(self.teacher).denoiser.state_dict()
        assert all(torch.equal(weight, original[name]) for name, weight in own.items())
        base = {id(weight) for weight in pl_module.teacher.denoiser.parameters()}
        for network in (pl_module.generator, pl_module.generator_ema):
            others = [name for name, weight in network.named_parameters() if id(weight) not in base]
            assert others and all("lora_" in name for name in others)
        assert sum(id(weight) in base for weight in pl_module.discriminator.parameters()) > 20
        assert all(weight.requires_grad != (id(weight) in base) for weight in pl_module.discriminator.parameters())


def test_the_base_weights_are_the_teachers_and_stay(lora_config, tmp_path, tiny_pipeline):
    check = {"class_path": "tests.methods.test_lora.SharedWeights", "init_args": {"teacher": str(tiny_pipeline)}}
    lora_config["trainer"]["callbacks"].append(check)
    main(["fit", "-c", write(tmp_path / "fit.yaml", lora_config)])


def test_a_killed_run_resumes_to_the_same_weights(lora_config, tmp_path):
    whole = named(lora_config, "whole")
    main(["fit", "-c", write(tmp_path / "whole.yaml", whole)])
    half = copy.deepcopy(lora_config)
    half["model"]["init_args"]["images"] = 24
    main(["fit", "-c", write(tmp_path / "half.yaml", half)])
    main(["fit", "-c", write(tmp_path / "fit.yaml", lora_config)])
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_two_processes_train_as_one(lora_config, tmp_path):
    """DDP; FSDP2 is refused, and why."""
    use_large_adam_eps(lora_config)
    main(["fit", "-c", write(tmp_path / "fit.yaml", lora_config)])
    together = write(tmp_path / "together.yaml", named(lora_config, "together"))
    words = ["fit", "-c", together, "-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=5e-6, rtol=1e-4)
    errors = tmp_path / "errors"
    sharded = named(lora_config, "sharded")
    words = ["fit", "-c", write(tmp_path / "sharded.yaml", sharded), "-c", "configs/strategies/fsdp.yaml"]
    assert run_on_two_processes([*words, "--trainer.devices", "2"], errors) == [1, 1]
    assert "FSDP2 would shard the weights" in errors.read_text() and "Traceback" not in errors.read_text()


def test_the_average_on_the_cpu_is_saved_without_the_base_and_resumes(lora_config, tmp_path):
    lora_config["trainer"]["callbacks"][0]["init_args"]["on_cpu"] = True
    lora_config["model"]["init_args"]["images"] = 24
    main(["fit", "-c", write(tmp_path / "whole.yaml", named(lora_config, "whole"))])
    names = [name for name in checkpoint(tmp_path / "whole")["state_dict"] if name.startswith("generator_ema.")]
    assert names and all("lora_" in name for name in names)
    path = write(tmp_path / "fit.yaml", lora_config)
    main(["fit", "-c", path, "--model.init_args.images", "16"])
    main(["fit", "-c", path])
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"rank": 0}, "rank is 0 and must be at least 1"),
        ({"rank": 10**9}, "rank is 1000000000 and must be at least 1 and at most 4096"),
        ({"rank": 2, "alpha": -1.0}, "alpha is -1.0 and must be above 0"),
        ({"rank": 2, "alpha": float("nan")}, "lora.alpha: nan is no number"),
        ({"rank": 2, "alpha": float("inf")}, "alpha is inf and must be above 0 and finite"),
        ({"rank": 2, "targets": []}, "targets is empty"),
        ({"rank": 2, "targets": ["to_q", "to_x"]}, "to_x matches no layer of the UNet2DConditionModel"),
    ],
)
def test_wrong_settings_are_one_line(lora_config, tmp_path, capsys, changes, reason):
    lora_config["model"]["init_args"]["lora"] = changes
    assert reason in refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", lora_config))


def test_adapters_beside_random_weights_are_refused(lora_config, tmp_path, capsys):
    adversarial_settings(lora_config)["discriminator"]["init_args"]["from_teacher"] = False
    assert "from_teacher is false" in refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", lora_config))


def test_a_checkpoint_of_a_full_training_is_refused(adversarial_config, tmp_path, capsys):
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    other = named(adversarial_config, "other")
    other["model"]["init_args"]["lora"] = ADAPTERS
    path = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    words = ["fit", "-c", write(tmp_path / "other.yaml", other), "--ckpt_path", path]
    assert "is of another model" in refused(capsys, *words)


def test_exports_merged_or_as_a_file_for_stock_diffusers(lora_config, tmp_path, tiny_pipeline, capsys):
    """Both give the latents of the averaged generator, and the merged one is a pipeline like any other."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", lora_config)])
    main(["export", str(tmp_path / "run"), str(tmp_path / "merged")])
    main(["export", str(tmp_path / "run"), str(tmp_path / "adapters"), "--lora"])
    assert {file.name for file in (tmp_path / "adapters").iterdir()} >= {"pytorch_lora_weights.safetensors"}
    teacher = load_teacher(str(tiny_pipeline))
    noise, prompts = draw_noise(range(2), teacher.latent_shape), ["digit 7", ""]
    network = with_adapters(teacher.denoiser, LoRA(**ADAPTERS))
    generator = OneStepGenerator(network, teacher.scheduler)
    saved = checkpoint(tmp_path / "run")["state_dict"]
    average = {n.removeprefix("generator_ema."): w for n, w in saved.items() if n.startswith("generator_ema.")}
    assert not generator.load_state_dict(average, strict=False).unexpected_keys
    with torch.no_grad():
        trained = generator(noise, teacher.encode(prompts))
        untrained = OneStepGenerator(teacher.denoiser, teacher.scheduler)(noise, teacher.encode(prompts))
    assert (trained - untrained).abs().max() > 1e-4
    merged, beside = load_stock(tmp_path / "merged", teacher), load_stock(tiny_pipeline, teacher)
    beside.load_lora_weights(tmp_path / "adapters")
    for pipe in (merged, beside):
        torch.testing.assert_close(stock_latents(pipe, prompts, noise, 1, 1.0), trained, atol=1e-5, rtol=1e-5)
    for words in (["sample", "digit 7", "--student", tmp_path / "adapters"], ["push", tmp_path / "adapters", "me/x"]):
        assert "without --lora" in refused(capsys, *words)
    assert "--dtype and --single_file are for whole pipelines" in refused(
        capsys, "export", str(tmp_path / "run"), str(tmp_path / "x"), "--lora", "--dtype", "float16"
    )


def test_exported_adapters_have_the_schedule_of_an_earlier_timestep(lora_config, tmp_path, tiny_pipeline, capsys):
    """Stock diffusers, with adapters and scheduler beside the teacher, gives the latents of the merged pipeline."""
    lora_config["model"]["init_args"]["timesteps"] = [399]
    main(["fit", "-c", write(tmp_path / "fit.yaml", lora_config)])
    main(["export", str(tmp_path / "run"), str(tmp_path / "merged")])
    main(["export", str(tmp_path / "run"), str(tmp_path / "adapters"), "--lora"])
    how = f"DDIMScheduler.from_pretrained('{tmp_path}/adapters', subfolder='scheduler')"
    assert f"its scheduler: {how}" in capsys.readouterr().out
    merged, beside = (StableDiffusionPipeline.from_pretrained(path) for path in (tmp_path / "merged", tiny_pipeline))
    beside.load_lora_weights(tmp_path / "adapters")
    beside.scheduler = DDIMScheduler.from_pretrained(tmp_path / "adapters", subfolder="scheduler")
    noise = draw_noise(range(2), load_teacher(str(tiny_pipeline)).latent_shape)
    expected, found = (stock_latents(pipe, ["digit 7", ""], noise, 1, 1.0) for pipe in (merged, beside))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert beside.scheduler.timesteps.tolist() == [399]


def test_a_full_training_has_no_adapters_to_export(adversarial_config, tmp_path, capsys):
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    words = ["export", str(tmp_path / "run"), str(tmp_path / "adapters"), "--lora"]
    assert "there are no adapters; leave --lora out" in refused(capsys, *words)
