"""Wrong values are refused in one line, before any work begins: nothing is written."""

import copy
from itertools import pairwise

import pytest
import yaml

from diffgan.__main__ import main
from tests import pair_sets
from tests.runs import refused, write

NAN, INF = float("nan"), float("inf")
MODEL, DATA, TRAINER = ("model", "init_args"), ("data", "init_args"), ("trainer",)
OPTIMIZER = (*MODEL, "generator_optimizer", "init_args")
ADVERSARIAL = (*MODEL, "adversarial", "init_args")
EMA, CHECKPOINT, SAMPLES = ((*TRAINER, "callbacks", number, "init_args") for number in range(3))
HEALTH = (*TRAINER, "callbacks", 4, "init_args")

FIT = [
    *(((*MODEL, "warmup_images"), value) for value in (-1, NAN)),
    *(((*MODEL, "cooldown_images"), value) for value in (-5, 49)),
    *(((*MODEL, "clip_norm"), value) for value in (NAN, INF, 0, -1)),
    *(((*MODEL, "images"), value) for value in (-8, 0, 1.5, 10**19)),
    *(((*MODEL, "accumulate"), value) for value in (0, -1, 3)),
    *(((*MODEL, "timesteps"), value) for value in ([], [1000], [-1])),
    ((*MODEL, "teacher"), ""),
    *(((*OPTIMIZER, "lr"), value) for value in (-1, NAN, INF)),
    *(((*OPTIMIZER, "weight_decay"), value) for value in (-1, NAN, INF)),
    ((*OPTIMIZER, "eps"), NAN),
    ((*OPTIMIZER, "betas"), [0.9, NAN]),
    ((*MODEL, "generator_optimizer"), {"class_path": "os.system"}),
    ((*MODEL, "generator_optimizer"), "os.system"),
    ((*MODEL, "generator_optimizer"), {"class_path": "torch.nn.Linear", "init_args": {"out_features": 3}}),
    ((*ADVERSARIAL, "discriminator"), "os.system"),
    ((*ADVERSARIAL, "discriminator"), {"class_path": "collections.OrderedDict"}),
    ((*ADVERSARIAL, "optimizer", "init_args", "lr"), NAN),
    *(((*ADVERSARIAL, name), NAN) for name in ("weight", "generator_rate", "clip_norm", "r1_gamma", "mismatch_share")),
    *(((*ADVERSARIAL, name), INF) for name in ("weight", "generator_rate", "clip_norm", "r1_gamma", "input_noise")),
    ((*ADVERSARIAL, "warmup_images"), -1),
    *(((*ADVERSARIAL, "starts_at_images"), value) for value in (-1, 48)),
    *(((*DATA, "batch_size"), value) for value in (0, -8, 10**9)),
    *(((*DATA, "workers"), value) for value in (-1, 10**6)),
    *(((*DATA, "seed"), value) for value in (-1, 2**64, 1.5)),
    *(((*DATA, "validation_pairs"), value) for value in (-1, 10**9)),
    ((*DATA, "folder"), ""),
    ((*DATA, "cache_gb"), NAN),
    ((*DATA, "interleave"), 0),
    *(((*EMA, "half_life_images"), value) for value in (-1, NAN, INF)),
    ((*EMA, "log_every_images"), 0),
    ((*CHECKPOINT, "every_images"), 0),
    *(((*SAMPLES, "seed"), value) for value in (-1, 2**32, 2**32 - 1)),
    *(((*SAMPLES, "guidance"), value) for value in (-2, NAN, INF)),
    *(((*SAMPLES, "steps"), value) for value in (0, -1, 1001)),
    ((*SAMPLES, "prompts"), []),
    *(((*HEALTH, "seed"), value) for value in (-1, 2**32)),
    *(((*HEALTH, "guidance"), value) for value in (-2, NAN)),
    *(((*HEALTH, "steps"), value) for value in (0, 1001)),
    *(((*HEALTH, "patience_images"), value) for value in (-1,)),
    *(((*HEALTH, "least_diversity"), value) for value in (INF, NAN)),
    *(((*HEALTH, "saturated_at"), value) for value in (INF, NAN)),
    *(((*TRAINER, "val_check_interval"), value) for value in (0, -1, 0.0, NAN, 1.5)),
    *(((*TRAINER, "limit_train_batches"), value) for value in (0, 0.0, -1, NAN)),
    *(((*TRAINER, "limit_val_batches"), value) for value in (-1, NAN)),
    *(((*TRAINER, "max_epochs"), value) for value in (0, -2)),
    *(((*TRAINER, "max_steps"), value) for value in (0, -2)),
    *(((*TRAINER, "log_every_n_steps"), value) for value in (-1,)),
    ((*TRAINER, "devices"), 0),
    ((*TRAINER, "devices"), "many"),
    ((*TRAINER, "accelerator"), "abacus"),
    ((*TRAINER, "accelerator"), "cuda"),
    ((*TRAINER, "precision"), "16-true"),
    ((*TRAINER, "strategy"), "none"),
    ((*TRAINER, "accumulate_grad_batches"), 0),
    ((*TRAINER, "gradient_clip_val"), NAN),
    (("seed_everything",), -1),
    (("seed_everything",), 2**33),
    (("seed_everything",), 1.5),
    (("data",), None),
    (("model",), None),
    (("trainer",), None),
    (("data",), {"class_path": "datamodules.glyphs.GlyphImages"}),
]

FEW = FIT[::6]  # the others need as long as a short training
WRITER = (*TRAINER, "callbacks", 0, "init_args")
PREDICT = [
    *(((*DATA, "pairs"), value) for value in (0, -1, 2**33)),
    *(((*DATA, "seed_base"), value) for value in (-1, 2**32)),
    *(((*DATA, "batch_size"), value) for value in (0, 10**9)),
    ((*DATA, "repeat"), 0),
    ((*DATA, "prompts"), ""),
    *(((*MODEL, "guidance"), value) for value in (-2, NAN, INF)),
    *(((*MODEL, "steps"), value) for value in (0, 1001)),
    ((*MODEL, "solver"), "NoScheduler"),
    ((*WRITER, "shard_size"), 0),
    *(((*WRITER, "lease_seconds"), value) for value in (0, NAN, INF)),
    ((*WRITER, "folder"), ""),
    (("data",), None),
    (("model", "class_path"), "diffgan.nothing.PairGeneration"),
]


def changed(config, keys, value):
    """The configuration with another value at a path of keys."""
    config = copy.deepcopy(config)
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return config


def name_of(case):
    keys, value = case
    return f"{'.'.join(map(str, keys))}={value}"


@pytest.fixture
def complete(config):
    """A distillation with a discriminator and every callback that takes numbers."""
    config["model"]["init_args"]["adversarial"] = {
        "class_path": "diffgan.methods.adversarial.AdversarialTraining",
        "init_args": {
            "discriminator": {"class_path": "diffgan.nets.discriminator.MultiScaleDiscriminator"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "starts_at_images": 24,
            "warmup_images": 8,
        },
    }
    health = {"prompts": ["digit 7"], "noises": 2, "steps": 2, "every_images": 8}
    config["trainer"]["callbacks"].append(
        {"class_path": "callbacks.training_health.TrainingHealth", "init_args": health}
    )
    return config


def assert_refused(verb, config, tmp_path, capsys):
    """One line, which is returned, and no new file or folder."""
    file = write(tmp_path / f"{verb}.yaml", config)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    lines = refused(capsys, verb, "-c", file).splitlines()
    assert lines[-1].startswith("diffgan: error: ") and len(lines) <= 3
    assert sorted(tmp_path.rglob("*")) == before
    return lines[-1]


@pytest.mark.parametrize(("keys", "value"), FEW, ids=map(name_of, FEW))
def test_fit_refuses(keys, value, complete, tmp_path, capsys):
    assert_refused("fit", changed(complete, keys, value), tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "value"), FIT, ids=map(name_of, FIT))
def test_fit_refuses_each(keys, value, complete, tmp_path, capsys):
    assert_refused("fit", changed(complete, keys, value), tmp_path, capsys)


@pytest.fixture
def prediction(tiny_pipeline, tmp_path):
    """The configuration of a small pair set."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("digit 7\n")
    file = tmp_path / "predict.yaml"
    pair_sets.predict_words(file, tmp_path / "set", tiny_pipeline, prompts)
    config = yaml.safe_load(file.read_text())
    config["trainer"]["callbacks"] = [config["trainer"]["callbacks"]["pairs"]]
    return config


@pytest.mark.parametrize(("keys", "value"), PREDICT, ids=map(name_of, PREDICT))
def test_predict_refuses(keys, value, prediction, tmp_path, capsys):
    assert_refused("predict", changed(prediction, keys, value), tmp_path, capsys)


@pytest.mark.parametrize(
    ("keys", "most"), [((*MODEL, "warmup_images"), 32), ((*ADVERSARIAL, "warmup_images"), 8)], ids=["generator", "d"]
)
def test_warm_up_that_does_not_end_is_refused_but_not_in_a_resumed_run(keys, most, complete, tmp_path, capsys):
    """Runs of version 0.1 have it."""
    complete["model"]["init_args"]["images"] = 32
    too_long = changed(complete, keys, most + 1)
    assert f"warmup_images: {most + 1}" in assert_refused("fit", too_long, tmp_path, capsys)
    main(["fit", "-c", write(tmp_path / "fit.yaml", changed(complete, keys, most))])
    capsys.readouterr()
    main(["fit", "-c", write(tmp_path / "longer.yaml", too_long), "--ckpt_path", "last"])
    assert f"warmup_images: {most + 1} is more than the {most} images there are" in capsys.readouterr().err


def test_default_warm_up_that_does_not_end_is_reported(complete, tmp_path, capsys):
    del complete["model"]["init_args"]["adversarial"]["init_args"]["warmup_images"]
    main(["fit", "-c", write(tmp_path / "fit.yaml", complete)])
    assert "warning: adversarial: warmup_images: 1000 is more than the 24 images" in capsys.readouterr().err


# ---- what a fit leaves ----


def test_fast_dev_run_leaves_nothing_and_resumes_from_nothing(complete, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "fit.yaml", complete)
    for _ in range(2):
        main(["fit", "-c", file, "--trainer.fast_dev_run", "1"])
    assert "diffgan: fit from" not in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "fit.yaml"]


def test_predict_refuses_a_trial(prediction, tmp_path, capsys):
    prediction["trainer"]["fast_dev_run"] = True
    assert "predict: fast_dev_run would begin a pair set" in assert_refused("predict", prediction, tmp_path, capsys)


def test_refused_fit_leaves_the_folders_that_were_there(complete, tmp_path, capsys):
    complete["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path / "deep" / "runs")
    (tmp_path / "deep").mkdir()
    assert_refused("fit", changed(complete, (*MODEL, "accumulate"), 3), tmp_path, capsys)
    (tmp_path / "deep" / "runs" / "run").mkdir(parents=True)
    refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", changed(complete, (*MODEL, "accumulate"), 3)))
    assert (tmp_path / "deep" / "runs" / "run").is_dir()


def test_fit_of_a_checkpoint_that_is_missing_leaves_nothing(complete, tmp_path, capsys):
    error = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", complete), "--ckpt_path", tmp_path / "no.ckpt")
    assert "no.ckpt: no such file" in error and not (tmp_path / "run").exists()


# ---- files that are no configurations ----


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)


NO_CONFIGURATIONS = {
    "binary": b"\x00\xff\xfe\x01" * 9,
    "control characters": b"\x07\x08",
    "no UTF-8": b"\xff",
    "a list": b"- 1",
    "deep": b"a: " + b"[" * 3000 + b"]" * 3000,
    "aliases of aliases": ALIASES.encode(),
}


@pytest.mark.parametrize("content", NO_CONFIGURATIONS.values(), ids=NO_CONFIGURATIONS)
def test_file_that_is_no_configuration_is_one_line(content, tmp_path, capsys):
    file = tmp_path / "fit.yaml"
    file.write_bytes(content)
    (line,) = refused(capsys, "fit", "-c", file).splitlines()
    assert line.startswith(f"diffgan: error: {file}")
