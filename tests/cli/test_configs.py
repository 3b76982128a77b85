"""Every combination of configuration files that the Makefile runs, parsed and merged as the command does it."""

import copy
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from diffgan.__main__ import main
from diffgan.evaluation.protocols.coco import read_protocol

LOSSES = ("mse", "pseudo_huber", "latent_lpips", "e_latent_lpips")
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
    """init_args of the callback whose class has this name."""
    (found,) = (c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("." + name))
    return found["init_args"]


@pytest.mark.parametrize(("pairs", "distill"), [(PAIRS, DISTILL), (DEMO_PAIRS, DEMO)])
def test_stages_meet(capsys, pairs, distill):
    made, used = merged(capsys, "predict", pairs), merged(capsys, "fit", distill)
    assert arguments(made, "PairWriter")["folder"] == used["data"]["init_args"]["folder"]
    assert made["model"]["init_args"]["teacher"] == used["model"]["init_args"]["teacher"] == "glyphs"
    assert made["trainer"]["default_root_dir"] == arguments(made, "PairWriter")["folder"]
    budget = used["model"]["init_args"]
    assert budget["warmup_images"] + budget["cooldown_images"] < budget["images"]


def test_demo_and_its_teacher_are_judged_by_one_protocol(capsys):
    makefile = Path("Makefile").read_text()
    for folder, files in (("runs/demo", DEMO), ("runs/glyphs", DISTILL)):
        protocol = re.search(rf"JUDGED={folder} PROTOCOL=(\S+)", makefile)[1]
        assert arguments(merged(capsys, "test", files), "GlyphEvaluator")["protocol"] == protocol


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_table_differs_in_the_loss_alone(capsys, loss):
    common = [*DISTILL, "configs/tables/losses.yaml"]
    base, row = merged(capsys, "fit", common), merged(capsys, "fit", [*common, f"configs/tables/losses/{loss}.yaml"])
    assert row["trainer"]["logger"]["init_args"]["name"] == loss
    for config in (base, row):
        config["model"]["init_args"].pop("regression")
        for name in ("save_dir", "name"):
            config["trainer"]["logger"]["init_args"].pop(name)
    assert row == base


PARTS = ("diffusion", "noise", "r1", "multi_scale", "mix_and_match")
ADDED = dict(zip(PARTS[1:], ("noise_conditioning", "r1_gamma", "multi_scale", "mismatch_share"), strict=True))


def test_discriminator_table_adds_one_part_a_row(capsys):
    """From a discriminator that only begins as the teacher to everything; rows differ in that part alone."""
    common, rows = [*DISTILL, "configs/tables/discriminator.yaml"], {}
    for row in PARTS:
        config = merged(capsys, "fit", [*common, f"configs/tables/discriminator/{row}.yaml"])
        assert config["trainer"]["logger"]["init_args"].pop("name") == row
        rows[row] = config
    for before, row in pairwise(PARTS):
        one, two = (copy.deepcopy(rows[name]) for name in (before, row))
        values = []
        for config in (one, two):
            given = config["model"]["init_args"]["adversary"]["init_args"]
            inside = given["discriminator"]["init_args"]
            values.append((inside if ADDED[row] in inside else given).pop(ADDED[row]))
        assert not values[0] and values[1] and one == two
    alone = merged(capsys, "fit", [*common, "configs/tables/discriminator/regression.yaml"])
    assert alone["model"]["init_args"]["adversary"] is None


@pytest.mark.parametrize(
    ("strategy", "name"),
    [("ddp", "lightning.pytorch.strategies.DDPStrategy"), ("fsdp", "diffgan.training.strategies.FSDP2Strategy")],
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


HUB = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
STAGES = {"pairs": "predict", "latent_vgg": "fit", "calibration": "fit", "distill": "fit"}


@pytest.mark.parametrize("recipe", HUB)
def test_recipes_for_stable_diffusion_meet(capsys, recipe):
    """Every file is a stage; one takes up what another makes, of the same teacher."""
    assert {file.stem for file in Path("configs", recipe).glob("*.yaml")} == set(STAGES)
    files = {stage: merged(capsys, verb, [f"configs/{recipe}/{stage}.yaml"]) for stage, verb in STAGES.items()}
    assert {config["trainer"]["accelerator"] for config in files.values()} == {"gpu"}
    given = {stage: config["model"]["init_args"] for stage, config in files.items()}
    assert given["pairs"]["teacher"] == given["distill"]["teacher"] == HUB[recipe]
    autoencoders = [given["latent_vgg"], *(files[s]["data"]["init_args"] for s in ("latent_vgg", "calibration"))]
    assert {given["vae"] for given in autoencoders} == {f"{HUB[recipe]}/vae"}
    assert given["latent_vgg"]["target"] == given["calibration"]["weights"]
    distance = given["distill"]["regression"]["init_args"]["distance"]["init_args"]
    assert distance["weights"] == given["calibration"]["target"]
    folder = arguments(files["pairs"], "PairWriter")["folder"]
    assert folder == files["distill"]["data"]["init_args"]["folder"] == files["pairs"]["trainer"]["default_root_dir"]
    for stage in ("latent_vgg", "calibration"):
        assert files[stage]["trainer"]["max_steps"] == given[stage]["steps"]
    budget = given["distill"]
    starts = budget["adversary"]["init_args"]["starts_at_images"]
    assert starts + budget["adversary"]["init_args"]["warmup_images"] + budget["cooldown_images"] <= budget["images"]
    protocol = read_protocol(Path(arguments(files["distill"], "COCOFID")["protocol"]))
    assert protocol.seeds.start >= files["pairs"]["data"]["init_args"]["pairs"]  # judged with noises of no pair


def test_pixels_and_latents_have_one_recipe(capsys):
    for stage, difference in (("latent_vgg", "pixels"), ("calibration", "pixels-calibration")):
        latent = merged(capsys, "fit", [f"configs/glyphs/{stage}.yaml"])
        pixel = merged(capsys, "fit", [f"configs/glyphs/{stage}.yaml", f"configs/glyphs/{difference}.yaml"])
        for config in (latent, pixel):
            config["trainer"]["logger"]["init_args"].pop("name")
            config["data"]["init_args"].pop("vae")
            for name in ("vae", "omitted_pools", "target", "weights"):
                config["model"]["init_args"].pop(name, None)
        assert latent == pixel
