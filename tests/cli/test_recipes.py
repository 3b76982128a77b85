"""The recipes for pipelines of the hub, file by file, with a tiny pipeline in place of the hub's."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image

from diffgan.__main__ import main
from diffgan.evaluation.features.inception import InceptionFeatures
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.lpips import ELatentLPIPS
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.teachers.registry import load_teacher
from tests.bapps import write_bapps
from tests.pipelines import FAMILIES, random_inception, saved
from tests.processes import run_on_two_processes
from tests.runs import curves, write

RECIPES = {"sd15": "sd1", "sdxl": "sdxl", "pixart": "pixart", "sd35": "sd3", "flux": "flux"}
# The first is that of the test.
PROTOCOLS = {recipe: ["coco2017-5k"] for recipe in RECIPES} | {"sd15": ["coco2014-30k", "coco2014-5k"]}
FOLLOWED_BY = dict.fromkeys(RECIPES, "evaluation") | {"sd15": "progress_evaluation"}  # what evaluates in the fit
WEIGHTS = {"pixart": "sdxl"}  # whose perceptual weights serve
DEPTHS = {"model.adversarial.init_args.discriminator.init_args.depths": 2}  # the tiny transformers have few blocks
OWN = {"pixart": DEPTHS, "sd35": DEPTHS, "flux": DEPTHS}
IMAGES = {"coco2014-30k": 7, "coco2014-5k": 4, "coco2017-5k": 7}
CONFIGS = Path("configs").resolve()
PERCEPTUAL = {
    "latent_vgg": {
        "trainer.sync_batchnorm": "false",  # it requires a GPU; tests/perceptual/test_lpips.py folds what it makes
        "trainer.callbacks.checkpoint.init_args.every_n_train_steps": 1,
        "model.init_args.width": 0.125,
        "model.init_args.classes": "[2]",
        "model.init_args.warmup": 1,
        "data.init_args.size": 64,
        "data.init_args.batch_size": 4,
    },
    "calibration": {
        "model.init_args.cooldown": 1,
        "data.init_args.resolution": 64,
        "data.init_args.batch_size": 4,
    },
}
SMALLER = {
    # float16 requires a GPU
    "pairs": {"recipe.pair_count": 80, "data.batch_size": 16, "trainer.precision": "32-true"},
    "distill": {
        "model.images": 64,  # two batches: regression alone, then adversarial training
        "model.warmup_images": 16,
        "model.cooldown_images": 16,
        "model.adversarial.init_args.starts_at_images": 32,
        "model.adversarial.init_args.warmup_images": 0,
        "data.batch_size": 32,
        "data.validation_pairs": 16,
        "data.workers": 0,
        "trainer.val_check_interval": 1,
        "trainer.callbacks.checkpoint.init_args.every_images": 32,
    },
}


def words(verb, recipe, stage, devices=1, **changes):
    """The recipe's command on CPUs with less of everything; nothing else is changed."""
    settings = {**SMALLER[stage], "recipe.teacher": "tiny", "trainer.accelerator": "cpu", "trainer.devices": devices}
    if recipe == "flux":
        settings["recipe.size"] = "[32,32]"
    if stage == "distill":
        settings |= OWN.get(recipe, {})
        settings[f"trainer.callbacks.{FOLLOWED_BY[recipe]}.init_args.every_images"] = 32
        settings["trainer.callbacks.checkpoint.init_args.monitor"] = f"evaluation/fd_{InceptionFeatures().name}"
    settings |= changes
    given = [f"--{key}={value}".replace("model.", "model.init_args.", 1) for key, value in settings.items()]
    given = [word.replace("--data.", "--data.init_args.") for word in given]
    return [verb, "-c", str(CONFIGS / recipe / f"{stage}.yaml"), *given, "--trainer.enable_model_summary=false"]


def lay_out(recipe, folder):
    """What a user puts into the places that the recipe names: teacher, captions, weights, images, all tiny."""
    saved(FAMILIES[RECIPES[recipe]], folder / "tiny")
    captions = [f"digit {i % 10}" for i in range(40)]
    (folder / "data" / "laion").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"caption": captions}), folder / "data" / "laion" / "aesthetic.parquet")
    space = load_teacher(str(folder / "tiny")).space
    network = LatentVGG16(space.channels, width=0.125).eval()
    weights = folder / "runs" / WEIGHTS.get(recipe, recipe) / "latent_lpips.safetensors"
    save_weights(weights, PerceptualWeights(network, space))
    for name in PROTOCOLS[recipe]:
        lay_out_protocol(name, folder)
    (folder / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    random_inception(folder / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")


def lay_out_protocol(name, folder):
    """The protocol with a few images, without CLIP, whose captions and images lie where its file says."""
    protocol = yaml.safe_load((CONFIGS / "protocols" / f"{name}.yaml").read_text())
    protocol |= {"images": IMAGES[name], "clip_model": None, "clip_weights": None, "reference_images": None}
    protocol["metrics"] = [metric for metric in protocol.get("metrics", ["fid"]) if metric != "clip_score"]
    (folder / "configs" / "protocols").mkdir(parents=True, exist_ok=True)
    write(folder / "configs" / "protocols" / f"{name}.yaml", protocol)
    (folder / protocol["reference"]).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (40, 30, 3), np.uint8)).save(
            folder / protocol["reference"] / f"{i}.jpg"
        )
    (folder / protocol["captions"]).write_text("\n".join(json.dumps({"caption": f"digit {i}"}) for i in range(8)))


@pytest.fixture(params=RECIPES)
def recipe(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    lay_out(request.param, tmp_path)
    return request.param


def metrics(run):
    record = json.loads((run / "metrics.json").read_text())
    (name,) = (name for name in record["metrics"] if name.startswith("evaluation/fd_inception"))
    assert record["metrics"]["evaluation/images"] == 7 and len(record["protocol_digest"]) == 16
    return record["metrics"][name], record["protocol_digest"]


def evaluated_images(run):
    """{images seen: images evaluated then} of the fit."""
    return {step: values for (name, step), values in curves(run).items() if name == "evaluation/images"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_recipe_from_pairs_to_metrics(recipe, tmp_path):
    """With the recipe's strategy, precision, losses and callbacks on two processes; evaluated on two and on one."""
    main(words("predict", recipe, "pairs"))
    fit, follows = words("fit", recipe, "distill", devices=2), IMAGES[PROTOCOLS[recipe][-1]]
    assert run_on_two_processes(fit) == [0, 0]
    run = tmp_path / "runs" / recipe / "distill"
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert weights["images_seen"] == 64 and any(name.startswith("discriminator.") for name in weights["state_dict"])
    assert len(list((run / "samples").glob("*.png"))) == 2
    assert evaluated_images(run) == {32: {follows}, 64: {follows}} and (run / "checkpoints" / "best.ckpt").is_file()
    test = words("test", recipe, "distill", devices=2)
    assert run_on_two_processes(test, TORCH_HOME=str(tmp_path / "torch")) == [0, 0]
    shared, protocol = metrics(run)
    shutil.rmtree("runs/evaluation")
    main(words("test", recipe, "distill", **{"trainer.strategy": "auto"}))
    assert metrics(run) == (pytest.approx(shared, rel=1e-4), protocol)


@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() - WEIGHTS.keys()))
def test_the_perceptual_loss_is_trained(recipe, tmp_path, monkeypatch):
    """Both stages, with the recipe's strategy, in one process of a few small images."""
    monkeypatch.chdir(tmp_path)
    saved(FAMILIES[RECIPES[recipe]], tmp_path / "tiny")
    write_bapps(tmp_path / "data" / "bapps" / "2afc")
    random = np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "val"), ("cat", "dog"), range(4)):
        place = tmp_path / "data" / "imagenet" / split / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (70, 66, 3), np.uint8)).save(place / f"{number}.JPEG")
    common = {"trainer.accelerator": "cpu", "trainer.devices": 1, "recipe.teacher": "tiny", "data.init_args.workers": 0}
    common |= {"trainer.max_steps": 2, "model.init_args.steps": 2, "trainer.val_check_interval": 1}
    for stage, changes in PERCEPTUAL.items():
        options = [f"--{key}={value}" for key, value in (common | changes).items()]
        main(["fit", "-c", str(CONFIGS / recipe / f"{stage}.yaml"), *options])
    distance = ELatentLPIPS(f"runs/{recipe}/latent_lpips.safetensors")
    latents = torch.randn(2, 1, *load_teacher("tiny").latent_shape)
    assert distance.space == load_teacher("tiny").space and distance(*latents) > 0


def test_a_teacher_is_evaluated_by_the_same_protocol(recipe, tmp_path):
    protocol = f"configs/protocols/{PROTOCOLS[recipe][0]}.yaml"
    main(["evaluate", "tiny", "teacher.json", "--protocol", protocol, "--steps", "2", "--guidance", "3"])
    record = json.loads((tmp_path / "teacher.json").read_text())
    assert record["protocol_digest"] == read_protocol(Path(protocol)).digest
    assert record["network_calls"] == 2 and record["metrics"]["evaluation/images"] == 7
