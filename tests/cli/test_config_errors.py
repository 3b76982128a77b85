"""Mistakes in configurations end with one line: file, key, value, what is expected, the nearest known key."""

import copy
from importlib.util import find_spec

import pytest

from diffgan.__main__ import main
from tests.runs import write


@pytest.fixture
def edited(config, tmp_path):
    """edited(change): the configuration file after `change(config)`."""

    def make(change):
        other = copy.deepcopy(config)
        change(other)
        return write(tmp_path / "edited.yaml", other)

    return make


def put(keys, name, value):
    """A change that sets `name` in the dictionary at `keys`."""

    def change(config):
        for key in keys:
            config = config[key]
        config[name] = value

    return change


def replace_key(keys, old, new):
    """A change that misspells a key."""

    def change(config):
        for key in keys:
            config = config[key]
        config[new] = config.pop(old)

    return change


MODEL = ("model", "init_args")
EMA = ("trainer", "callbacks", 0, "init_args")
OPTIMIZER = (*MODEL, "generator_optimizer", "init_args")
CASES = {
    "key of the model": (
        replace_key(MODEL, "images", "imagess"),
        "model.init_args.imagess: 48: Diffusion2GAN has no such argument; did you mean images?",
    ),
    "value of the model": (
        put(MODEL, "images", "many"),
        "model.init_args.images: 'many' is not valid, expected int",
    ),
    "key of the trainer": (
        replace_key(("trainer",), "log_every_n_steps", "log_every_n_step"),
        "trainer.log_every_n_step: 1: Trainer has no such argument; did you mean log_every_n_steps?",
    ),
    "value of the trainer": (
        put(("trainer",), "max_epochs", "x"),
        "trainer.max_epochs: 'x' is not valid, expected int or null",
    ),
    "top-level key": (replace_key((), "data", "dat"), "no such key; did you mean data?"),
    "class": (
        put((*MODEL, "regression"), "class_path", "diffgan.losses.regression.PseudoHubert"),
        "did you mean diffgan.losses.regression.PseudoHuber?",
    ),
    "module": (
        put((*MODEL, "regression"), "class_path", "diffgan.nothing.PseudoHuber"),
        "did you mean diffgan.losses.regression.PseudoHuber?",
    ),
    "key of a callback": (
        replace_key(EMA, "half_life_images", "half_life_image"),
        "init_args.half_life_image: 20: EMA has no such argument; did you mean half_life_images?",
    ),
    "value of a callback": (
        put(EMA, "half_life_images", "long"),
        "init_args.half_life_images: 'long' is not valid, expected float",
    ),
    "key of an optimizer": (
        put(OPTIMIZER, "weight_deca", 0.1),
        "generator_optimizer.init_args.weight_deca: 0.1: AdamW has no such argument; did you mean weight_decay?",
    ),
    "key of the data": (
        replace_key(("data", "init_args"), "batch_size", "batchsize"),
        "data.init_args.batchsize: 8: LatentPairs has no such argument; did you mean batch_size?",
    ),
}


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_mistake_in_a_file_is_one_line(change, message, edited, capsys):
    file = edited(change)
    error = refused_by_the_parser(capsys, "fit", "-c", file)
    assert error.startswith(f"diffgan: error: {file}: ") and message in error


def test_the_file_with_the_mistake_is_named(edited, tmp_path, capsys):
    right = edited(lambda config: None)
    wrong = write(tmp_path / "wrong.yaml", {"model": {"init_args": {"images": "many"}}})
    assert refused_by_the_parser(capsys, "fit", "-c", right, "-c", wrong).startswith(f"diffgan: error: {wrong}: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.init_args.imges", "3"], "command line: --model.init_args.imges: Diffusion2GAN has no such argument"),
        (["--model.init_args.images", "x"], "command line: --model.init_args.images: 'x' is not valid, expected int"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["-c", "nothing.yaml"], "File does not exist"),
    ],
)
def test_mistake_in_an_option_is_one_line(words, message, edited, capsys):
    assert message in refused_by_the_parser(capsys, "fit", "-c", edited(lambda config: None), *words)


def test_file_of_a_relative_path_is_named(edited, tmp_path, capsys, monkeypatch):
    edited(put(MODEL, "images", "many"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert refused_by_the_parser(capsys, "fit", "-c", "../edited.yaml").startswith("diffgan: error: ../edited.yaml: ")


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="the package is installed")
def test_missing_optional_package_is_one_line(capsys):
    words = ["-c", "configs/sd15/distill.yaml", "-c", "configs/sd15/one-gpu.yaml"]
    error = refused_by_the_parser(capsys, "fit", *words)
    place = "configs/sd15/one-gpu.yaml: model.init_args.adversarial.init_args.optimizer.class_path"
    assert error.startswith(f"diffgan: error: {place}") and error.count("\n") == 1
    assert error.endswith("the package bitsandbytes is not installed: pip install 'bitsandbytes>=0.50'\n")


def test_missing_argument_is_one_line(edited, capsys):
    file = edited(lambda config: config["data"]["init_args"].pop("folder"))
    assert "LatentPairs: the following arguments are required: folder" in refused_by_the_parser(
        capsys, "fit", "-c", file
    )


def refused_by_the_parser(capsys, *words) -> str:
    """The error of a command whose settings are wrong: one line, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and "Traceback" not in error
    return error
