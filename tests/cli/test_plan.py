"""`diffgan plan`: what it prints and refuses; what the recipes take."""

import pytest
import yaml

from diffgan.__main__ import main
from diffgan.cli.plan import read_training
from diffgan.memory.budget import plan_memory
from diffgan.memory.drawing import Drawing
from tests.runs import distillation, refused, write

H100_PEAK = 58.1 * 2**30  # bytes: SD1.5, one process, 32 pairs, checkpointing, exact R1
TEACHER = 4.27e9  # of which SD1.5's teacher in float32, on the GPU then


def planned(capsys, *words):
    capsys.readouterr()
    main(["plan", *(str(word) for word in words)])
    return capsys.readouterr().out


@pytest.fixture
def training(tiny_pipeline, tmp_path):
    """A distillation whose pairs and perceptual weights do not exist yet."""
    config = distillation(tiny_pipeline, tmp_path / "no-pairs", tmp_path)
    arguments = config["model"]["init_args"]
    distance = {"class_path": "ELatentLPIPS", "init_args": {"weights": str(tmp_path / "none.safetensors")}}
    arguments["regression"] = {"class_path": "Perceptual", "init_args": {"distance": distance}}
    adamw = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 1e-3, "betas": [0.0, 0.99]}}
    arguments["adversarial"] = {
        "class_path": "AdversarialTraining",
        "init_args": {"discriminator": {"class_path": "MultiScaleDiscriminator"}, "optimizer": adamw},
    }
    return config


def test_plan_needs_neither_pairs_nor_weights_nor_bitsandbytes(training, tmp_path, capsys):
    output = planned(capsys, "-c", write(tmp_path / "a.yaml", training), "--devices", 2)
    assert "DDP without gradient_as_bucket_view over 2" in output and "4 pairs in 1 micro-batch" in output
    parts = ("weights", "optimizer states", "moving average", "perceptual network", "R1")
    for label in (*parts, "peak", "checkpoint", "at the start", "SampleGrid decodes images, 2 at once"):
        assert label in output
    assert "GPUs of 24 GB suffice" in output and not list(tmp_path.glob("*.safetensors"))


def test_callbacks_that_draw_in_a_fit_are_planned(training, tmp_path):
    """An evaluation in `diffgan test` alone is none of them."""
    protocol = {"protocol": "configs/protocols/coco2017-5k.yaml"}
    health = {"prompts": ["digit 7", "digit 8"], "noises": 3}
    training["trainer"]["callbacks"] += [
        {"class_path": "COCOFID", "init_args": protocol | {"batch_size": 128}},
        {"class_path": "COCOFID", "init_args": protocol | {"batch_size": 64, "every_images": 8, "fit_only": True}},
        {"class_path": "GlyphEvaluation", "init_args": {"every_images": 8}},
        {"class_path": "TrainingHealth", "init_args": health},
    ]
    *_, setup = read_training([write(tmp_path / "a.yaml", training)])
    assert setup.drawings == (
        Drawing("SampleGrid", latents=2, images=2, by_teacher=True),
        Drawing("COCOFID", latents=64, images=64, by_teacher=False),
        Drawing("GlyphEvaluation", latents=50, images=50, by_teacher=False),
        Drawing("TrainingHealth", latents=6, images=0, by_teacher=True),
    )


def test_the_demo_is_planned(capsys):
    files = ["-c", "configs/glyphs/distill.yaml", "-c", "configs/glyphs/demo-distill.yaml"]
    assert "8 pairs in 1 micro-batch of 8; one GPU; float32" in planned(capsys, *files)


def test_the_demo_in_bfloat16_is_planned(tmp_path, capsys):
    more = write(tmp_path / "more.yaml", {"trainer": {"precision": "bf16-mixed"}})
    files = ["-c", "configs/glyphs/distill.yaml", "-c", "configs/glyphs/demo-distill.yaml", "-c", more]
    assert "one GPU; bf16-mixed" in planned(capsys, *files)


def test_a_configuration_of_something_else_is_refused(capsys):
    assert "is no distillation" in refused(capsys, "plan", "-c", "configs/glyphs/latent_vgg.yaml")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda config: config["model"]["init_args"].update(imagess=1), "imagess"),
        (lambda config: config["model"]["init_args"].update(teacher="nowhere"), "teacher nowhere"),
        (lambda config: config["model"]["init_args"].update(accumulate=3), "accumulate: 8 pairs"),
        (lambda config: config["trainer"].update(devices=3), "batch_size: 8 pairs do not divide among 3"),
        (lambda config: config["trainer"].update(precision="16-mixed"), "precision 16-mixed"),
    ],
)
def test_mistakes_are_one_line(change, words, training, tmp_path, capsys):
    change(training)
    assert words in refused(capsys, "plan", "-c", write(tmp_path / "a.yaml", training))


# ---- the recipes ----


def recipe_budget(folder, files, overrides):
    """The memory of shipped configurations with other values, by key, and a teacher that needs no hub."""
    name = files[0].split("/")[0]
    changes = {"recipe": {"teacher": f"tests/data/pipelines/{name}"}}
    for key, value in overrides.items():
        *path, last = key.split(".")
        place = changes
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    more = folder / "more.yaml"
    more.write_text(yaml.safe_dump(changes))
    config = [f"configs/{file}" for file in files]
    return plan_memory(*read_training([*config, str(more)]))


MODEL, PENALTY = "model.init_args", "model.init_args.adversarial.init_args.r1"
ONE_MICRO_BATCH = {f"{MODEL}.accumulate": 1, "data.init_args.batch_size": 256}
TWO_MICRO_BATCHES = {f"{MODEL}.accumulate": 2, "data.init_args.batch_size": 256}
EXACT, FINITE = {PENALTY: "exact"}, {PENALTY: "finite_difference"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_peak_is_that_of_an_h100(tmp_path):
    alone = {"trainer.devices": 1, "trainer.strategy": "auto"}
    alone |= {f"{MODEL}.accumulate": 1, "data.init_args.batch_size": 32}
    planned = recipe_budget(tmp_path, ["sd15/distill.yaml"], alone | EXACT)
    text = planned.parts["text encoders"]
    assert planned.peak - text + TEACHER == pytest.approx(H100_PEAK, rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "files, overrides, limit",
    [
        (["sd15/distill.yaml"], ONE_MICRO_BATCH | FINITE, 55e9),
        (["sd15/distill.yaml"], TWO_MICRO_BATCHES | FINITE, 42e9),
        (["sd15/distill.yaml"], ONE_MICRO_BATCH | EXACT, 62e9),
        (["sdxl/distill.yaml"], {f"{MODEL}.accumulate": 8, "data.init_args.batch_size": 256} | FINITE, 70e9),
        (["sd15/distill.yaml", "sd15/one-gpu.yaml"], {}, 23e9),
    ],
)
def test_a_recipe_fits(files, overrides, limit, tmp_path):
    assert recipe_budget(tmp_path, files, overrides).peak < limit
