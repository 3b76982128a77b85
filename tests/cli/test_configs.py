"""Every combination of configuration files that the Makefile runs, parsed and merged as the command does it."""

import copy
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from diffgan.__main__ import main
from diffgan.cli import demo
from diffgan.cli.sweeps.table_file import SCALES, at_scale, read_table
from diffgan.evaluation.protocols.coco import read_protocol

PAIRS, DISTILL = ["configs/glyphs/pairs.yaml"], ["configs/glyphs/distill.yaml"]
DEMO_PAIRS, DEMO = [*PAIRS, "configs/glyphs/demo-pairs.yaml"], [*DISTILL, "configs/glyphs/demo-distill.yaml"]


def merged(capsys, verb, files, *options):
    """The configuration that a command with these files and options runs."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([verb, *(word for file in files for word in ("-c", file)), *options, "--print_config"])
    assert stop.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def arguments(config, name):
    """init_args of the callback of this name."""
    return config["trainer"]["callbacks"][name]["init_args"]


@pytest.mark.parametrize(("pairs", "distill"), [(PAIRS, DISTILL), (DEMO_PAIRS, DEMO)])
def test_stages_meet(capsys, pairs, distill):
    made, used = merged(capsys, "predict", pairs), merged(capsys, "fit", distill)
    assert arguments(made, "pairs")["folder"] == used["data"]["init_args"]["folder"]
    assert made["model"]["init_args"]["teacher"] == used["model"]["init_args"]["teacher"] == "glyphs"
    assert made["trainer"]["default_root_dir"] == arguments(made, "pairs")["folder"]
    budget = used["model"]["init_args"]
    assert budget["warmup_images"] + budget["cooldown_images"] < budget["images"]


def test_demo_and_its_teacher_are_evaluated_by_one_protocol(capsys):
    for size, files in ((demo.DEMO, DEMO), (demo.FULL, DISTILL)):
        assert arguments(merged(capsys, "test", files), "evaluation")["protocol"] == size.protocol


def test_the_demo_shows_and_evaluates_the_teacher_of_its_pairs(capsys):
    made, used = merged(capsys, "predict", DEMO_PAIRS), merged(capsys, "test", DEMO)
    assert made["model"]["init_args"]["steps"] == arguments(used, "samples")["steps"] == demo.DEMO.steps


# Every command takes seconds: the other scales are for `make test-all`.
FIRST = [scale if scale == "glyphs" else pytest.param(scale, marks=pytest.mark.slow) for scale in SCALES]


def run_config(capsys, table, scale, row):
    """The configuration of the `fit` of a table's row."""
    files = [*table.configs, *table.rows[row].configs]
    return merged(capsys, "fit", [at_scale(file, scale) for file in files])


LOSS_TABLE = read_table(Path("configs/tables/regression-losses.yaml"))
PARTS_TABLE = read_table(Path("configs/tables/discriminator.yaml"))
LOSSES = {
    "mse": "MSE",
    "pseudo_huber": "PseudoHuber",
    "pixel_lpips": "PixelLPIPS",
    "latent_lpips": "LatentLPIPS",
    "e_latent_lpips": "ELatentLPIPS",
}


@pytest.mark.parametrize("scale", FIRST)
def test_loss_table_differs_in_the_loss_alone(capsys, scale):
    configs, weights = {row: run_config(capsys, LOSS_TABLE, scale, row) for row in LOSS_TABLE.rows}, {}
    for row, config in configs.items():
        regression = config["model"]["init_args"].pop("regression")
        distance = regression.get("init_args", {}).get("distance", regression)
        assert distance["class_path"].rpartition(".")[2] == LOSSES[row]
        weights[row] = distance.get("init_args", {}).get("weights")
        assert config["model"]["init_args"]["adversarial"] is None
    assert all(config == configs["mse"] for config in configs.values())
    assert weights["latent_lpips"] == weights["e_latent_lpips"] != weights["mse"]
    assert weights["pixel_lpips"] == ("glyphs-pixels" if scale == "glyphs" else "lpips")


ROWS = ("diffusion", "noise", "r1", "multi_scale", "mix_and_match")
ADDED = dict(zip(ROWS[1:], ("noise_conditioning", "r1_gamma", "multi_scale", "mismatch_share"), strict=True))


@pytest.mark.parametrize("scale", FIRST)
def test_discriminator_table_adds_one_setting_a_row(capsys, scale):
    """From a discriminator that is only initialised as the teacher to the complete one, one setting a row."""
    rows = {row: run_config(capsys, PARTS_TABLE, scale, row) for row in ROWS}
    for before, row in pairwise(ROWS):
        one, two = (copy.deepcopy(rows[name]) for name in (before, row))
        values = []
        for config in (one, two):
            adversarial = config["model"]["init_args"]["adversarial"]["init_args"]
            discriminator = adversarial["discriminator"]["init_args"]
            values.append((discriminator if ADDED[row] in discriminator else adversarial).pop(ADDED[row]))
        assert not values[0] and values[1] and one == two
    alone = run_config(capsys, PARTS_TABLE, scale, "regression")
    assert alone["model"]["init_args"]["adversarial"] is None


@pytest.mark.parametrize("scale", FIRST)
def test_discriminators_begin_where_the_common_regression_ends(capsys, scale):
    files = [at_scale(file, scale) for file in (*PARTS_TABLE.configs, *PARTS_TABLE.start)]
    start = merged(capsys, "fit", files)["model"]["init_args"]
    row = run_config(capsys, PARTS_TABLE, scale, "mix_and_match")["model"]["init_args"]
    assert start["images"] == row["adversarial"]["init_args"]["starts_at_images"]
    assert start["adversarial"] is None and start["cooldown_images"] == 0
    assert row["images"] - row["cooldown_images"] >= start["images"]


@pytest.mark.parametrize("table", [LOSS_TABLE, PARTS_TABLE], ids=lambda table: table.name)
@pytest.mark.parametrize("scale", FIRST)
def test_runs_of_a_table_read_the_pairs_that_it_makes(capsys, table, scale):
    pairs = merged(capsys, "predict", [at_scale(file, scale) for file in table.pairs])
    run = run_config(capsys, table, scale, next(iter(table.rows)))
    assert arguments(pairs, "pairs")["folder"] == run["data"]["init_args"]["folder"]


@pytest.mark.parametrize(
    ("strategy", "name"),
    [("ddp", "diffgan.training.strategies.NetworkDDPStrategy"), ("fsdp", "diffgan.training.strategies.FSDP2Strategy")],
)
def test_strategies_parse(capsys, strategy, name):
    config = merged(capsys, "fit", [*DISTILL, f"configs/strategies/{strategy}.yaml"])
    assert config["trainer"]["strategy"]["class_path"] == name


@pytest.mark.parametrize("stage", ["autoencoder", "text_encoder", "denoiser", "latent_vgg", "calibration", "reader"])
def test_schedules_end_with_the_training_and_weights_are_saved_then(capsys, stage):
    config = merged(capsys, "fit", [f"configs/glyphs/{stage}.yaml"])
    trainer, model = config["trainer"], config["model"]["init_args"]
    assert trainer["max_steps"] == model["steps"] > model.get("warmup", 0)
    assert stage == "autoencoder" or trainer["max_steps"] % trainer["val_check_interval"] == 0


GPU = {"pairs": "predict"} | dict.fromkeys(
    ("autoencoder", "text_encoder", "denoiser", "latent_vgg", "calibration", "reader", "distill"), "fit"
)


def on_gpu(capsys, stage):
    """init_args of model and of data of a stage, without and with its difference for a GPU."""
    file = f"configs/glyphs/{stage}.yaml"
    both = [merged(capsys, GPU[stage], files) for files in ([file], [file, f"configs/glyphs/gpu/{stage}.yaml"])]
    assert both[1]["trainer"]["devices"] == 1 and both[1]["trainer"]["strategy"] == "auto"
    return [(config["model"]["init_args"], config["data"]["init_args"]) for config in both]


@pytest.mark.parametrize("stage", GPU)
def test_the_miniature_takes_one_device(capsys, stage):
    """On a machine of several GPUs too, where the default is all of them: its batches are too small to be shared."""
    own, difference = f"configs/glyphs/{stage}.yaml", f"configs/glyphs/gpu/{stage}.yaml"
    for files in ([own, difference], [own])[: 1 if stage == "denoiser" else 2]:  # its own file is for two CPU processes
        trainer = merged(capsys, GPU[stage], files)["trainer"]
        assert trainer["devices"] == 1 and trainer["accelerator"] == "auto"


def test_every_stage_has_a_difference_for_a_gpu():
    assert {file.stem for file in Path("configs/glyphs/gpu").glob("*.yaml")} == set(GPU)


@pytest.mark.parametrize("stage", [stage for stage in GPU if stage not in ("denoiser", "distill")])
def test_on_a_gpu_a_stage_makes_the_same_steps_of_more_images(capsys, stage):
    (model, data), (gpu_model, gpu_data) = on_gpu(capsys, stage)
    assert model == gpu_model
    assert gpu_data.pop("batch_size") >= data.pop("batch_size")
    assert {name for name in data if data[name] != gpu_data[name]} <= {"workers", "train_images", "resident"}


def test_on_a_gpu_the_denoiser_has_the_latents_and_texts_of_the_other_stages(capsys):
    (model, data), (gpu_model, gpu_data) = on_gpu(capsys, "denoiser")
    assert model["unet"] == gpu_model["unet"] and model["scheduler"] == gpu_model["scheduler"]
    assert gpu_model["seconds"] > 0 and 0 < gpu_model["cooldown"] < gpu_model["steps"]
    assert gpu_data["resident"] and not data["resident"] and gpu_data["train_images"] >= 10 * data["train_images"]
    trainer = merged(capsys, "fit", ["configs/glyphs/denoiser.yaml", "configs/glyphs/gpu/denoiser.yaml"])["trainer"]
    assert trainer["max_steps"] == trainer["max_epochs"] == -1 and "checkpoint" not in trainer["callbacks"]


def test_on_a_gpu_the_student_sees_as_many_images_at_rates_of_its_batch(capsys):
    (model, data), (gpu_model, gpu_data) = on_gpu(capsys, "distill")
    growth = gpu_data["batch_size"] / data["batch_size"]
    adversarial, gpu_adversarial = (each["adversarial"]["init_args"] for each in (model, gpu_model))
    for base, larger in (
        (model["generator_optimizer"], gpu_model["generator_optimizer"]),
        (adversarial["optimizer"], gpu_adversarial["optimizer"]),
    ):
        assert larger["init_args"]["lr"] == pytest.approx(base["init_args"]["lr"] * growth**0.5)
    for base, larger in ((model, gpu_model), (adversarial, gpu_adversarial)):
        assert larger["warmup_images"] == growth * base["warmup_images"]
    for name in ("images", "cooldown_images", "regression"):
        assert gpu_model[name] == model[name]
    assert gpu_adversarial["starts_at_images"] == adversarial["starts_at_images"]


HUB = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
STAGES = {"pairs": "predict", "latent_vgg": "fit", "calibration": "fit", "distill": "fit"}
DIFFERENCES = {"sd15": {"guidance-8", "one-gpu", "lora", "paper"}, "sdxl": {"lora", "lora-24gb", "paper"}}
STAGES_OF_PAIRS = [("predict", "pairs"), ("fit", "distill")]
TRANSFORMERS = {"pixart": "runs/sdxl", "sd35": "runs/sd35", "flux": "runs/flux"}  # where the perceptual weights are


@pytest.mark.parametrize("recipe", HUB)
def test_recipes_for_stable_diffusion_meet(capsys, recipe):
    """Every other file is a stage or a difference; a stage reads what another writes, of the same teacher."""
    files = {file.stem for file in Path("configs", recipe).glob("*.yaml")}
    assert files == {*STAGES, "recipe", *DIFFERENCES[recipe]}
    files = {stage: merged(capsys, verb, [f"configs/{recipe}/{stage}.yaml"]) for stage, verb in STAGES.items()}
    assert {config["trainer"]["accelerator"] for config in files.values()} == {"gpu"}
    models = {stage: config["model"]["init_args"] for stage, config in files.items()}
    assert models["pairs"]["teacher"] == models["distill"]["teacher"] == HUB[recipe]
    autoencoders = [models["latent_vgg"], *(files[s]["data"]["init_args"] for s in ("latent_vgg", "calibration"))]
    assert {each["vae"] for each in autoencoders} == {f"{HUB[recipe]}/vae"}
    assert models["latent_vgg"]["target"] == models["calibration"]["weights"]
    distance = models["distill"]["regression"]["init_args"]["distance"]["init_args"]
    assert distance["weights"] == models["calibration"]["target"]
    folder = arguments(files["pairs"], "pairs")["folder"]
    assert folder == files["distill"]["data"]["init_args"]["folder"] == files["pairs"]["trainer"]["default_root_dir"]
    for stage in ("latent_vgg", "calibration"):
        assert files[stage]["trainer"]["max_steps"] == models[stage]["steps"]
    budget = models["distill"]
    starts = budget["adversarial"]["init_args"]["starts_at_images"]
    assert starts + budget["adversarial"]["init_args"]["warmup_images"] + budget["cooldown_images"] <= budget["images"]
    for evaluation in (name for name in files["distill"]["trainer"]["callbacks"] if "evaluation" in name):
        protocol = read_protocol(Path(arguments(files["distill"], evaluation)["protocol"]))
        assert protocol.seeds.start >= files["pairs"]["data"]["init_args"]["pairs"]  # evaluated with noises of no pair


def test_guidance_8_has_pairs_and_a_run_of_its_own(capsys):
    """And the perceptual loss of the recipe, which depends on the autoencoder alone."""
    overlay = "configs/sd15/guidance-8.yaml"
    for verb, stage in (("predict", "pairs"), ("fit", "distill")):
        base = merged(capsys, verb, [f"configs/sd15/{stage}.yaml"])
        other = merged(capsys, verb, [f"configs/sd15/{stage}.yaml", overlay])
        folders = {
            config["data"]["init_args"].get("folder") or arguments(config, "pairs")["folder"]
            for config in (base, other)
        }
        assert folders == {"pairs/sd15", "pairs/sd15-guidance-8"}
    assert merged(capsys, "predict", ["configs/sd15/pairs.yaml", overlay])["data"]["init_args"]["pairs"] == 12_000_000
    assert base["trainer"]["logger"]["init_args"]["name"] != other["trainer"]["logger"]["init_args"]["name"]
    assert base["model"]["init_args"]["regression"] == other["model"]["init_args"]["regression"]


@pytest.mark.parametrize("recipe", ["glyphs", "sd15", "sdxl"])
def test_papers_choices_are_a_run_of_their_own(capsys, recipe):
    base, paper = (
        merged(capsys, "fit", [f"configs/{recipe}/distill.yaml", *more])
        for more in ([], [f"configs/{recipe}/paper.yaml"])
    )
    names = [config["trainer"]["logger"]["init_args"]["name"] for config in (base, paper)]
    assert names == ["distill", "paper"]
    settings = paper["model"]["init_args"]
    assert settings["timesteps"] == [999]
    distance = settings["regression"]["init_args"]["distance"]
    assert distance["class_path"].endswith(".ELatentLPIPS") and distance["init_args"]["ensemble"] == "bgo"
    adversarial = settings["adversarial"]["init_args"]
    assert (adversarial["r1_every"], adversarial["r1_samples"], adversarial["input_noise"]) == (16, 1, 0.0)
    switches = adversarial["discriminator"]["init_args"]
    assert switches.pop("lora") is None and set(switches.values()) == {True}


@pytest.mark.parametrize("recipe", TRANSFORMERS)
def test_recipes_for_transformers_meet(capsys, recipe):
    """Pairs and training are of one teacher and size; both networks have adapters."""
    pairs, distill = (merged(capsys, v, [f"configs/{recipe}/{s}.yaml"]) for v, s in STAGES_OF_PAIRS)
    model, adversarial = distill["model"]["init_args"], distill["model"]["init_args"]["adversarial"]["init_args"]
    made = pairs["model"]["init_args"]
    assert (made["teacher"], made["size"]) == (model["teacher"], model["size"])
    assert arguments(pairs, "pairs")["folder"] == distill["data"]["init_args"]["folder"]
    weights = model["regression"]["init_args"]["distance"]["init_args"]["weights"]
    assert weights == f"{TRANSFORMERS[recipe]}/latent_lpips.safetensors"
    assert model["lora"]["rank"] == adversarial["discriminator"]["init_args"]["lora"]["rank"] == 64
    assert arguments(distill, "samples")["guidance"] == made["guidance"]


@pytest.mark.parametrize("files", [["sd15/lora"], ["sdxl/lora"], ["sdxl/lora", "sdxl/lora-24gb"]], ids=str)
def test_adapters_train_on_one_gpu(capsys, files):
    scale = files[0].partition("/")[0]
    config = merged(capsys, "fit", [f"configs/{name}.yaml" for name in (f"{scale}/distill", *files)])
    model = config["model"]["init_args"]
    assert (config["trainer"]["devices"], config["trainer"]["strategy"]) == (1, "auto")
    assert model["lora"] == model["adversarial"]["init_args"]["discriminator"]["init_args"]["lora"]
    assert model["adversarial"]["init_args"]["starts_at_images"] < model["images"] - model["cooldown_images"]


def test_papers_batch_of_sd15_is_that_of_64_gpus(capsys):
    paper = merged(capsys, "fit", ["configs/sd15/distill.yaml", "configs/sd15/paper.yaml"])
    assert paper["trainer"]["num_nodes"] * paper["trainer"]["devices"] == 64
    assert paper["data"]["init_args"]["batch_size"] == 1024


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="requires bitsandbytes")
def test_one_gpu_has_one_process_and_small_optimizers(capsys):
    config = merged(capsys, "fit", ["configs/sd15/distill.yaml", "configs/sd15/one-gpu.yaml"])
    assert (config["trainer"]["devices"], config["trainer"]["strategy"]) == (1, "auto")
    model = config["model"]["init_args"]
    adversarial = model["adversarial"]["init_args"]
    for optimizer in (model["generator_optimizer"], adversarial["optimizer"]):
        assert optimizer["class_path"] == "bitsandbytes.optim.AdamW8bit"
        assert "fused" not in optimizer["init_args"]
    assert adversarial["r1"] == "finite_difference" and model["gradient_checkpointing"]
    assert arguments(config, "ema")["on_cpu"]


def test_pixels_and_latents_have_one_recipe(capsys):
    for stage, difference in (("latent_vgg", "pixels"), ("calibration", "pixels-calibration")):
        latent = merged(capsys, "fit", [f"configs/glyphs/{stage}.yaml"])
        pixel = merged(capsys, "fit", [f"configs/glyphs/{stage}.yaml", f"configs/glyphs/{difference}.yaml"])
        for config in (latent, pixel):
            config["trainer"]["logger"]["init_args"].pop("name")
            config["data"]["init_args"].pop("vae")
            for name in ("vae", "omitted_pools", "target", "weights"):
                config["model"]["init_args"].pop(name, None)
            assert config["trainer"].pop("max_steps") == config["model"]["init_args"].pop("steps")
        assert latent == pixel
