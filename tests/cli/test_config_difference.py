"""What makes a configuration another experiment than the record of a run."""

import copy
import json
from pathlib import Path

import pytest

from diffgan.cli.config_difference import first_difference
from diffgan.cli.sweeps.configuration import COMPARED, MAY_CHANGE, require_same_configuration
from diffgan.errors import UserError

RECORD = Path("configs/tables/results/glyphs/regression-losses/e_latent_lpips-seed-0.json")
ADVERSARIAL = {"class_path": "diffgan.methods.adversarial.AdversarialTraining", "init_args": {"weight": 2.0}}


@pytest.fixture(scope="module")
def made():
    """The configuration of a committed record."""
    return json.loads(RECORD.read_text())["config"]


def changed(made, key, value):
    """A copy with another value of a key such as "data.init_args.seed"; None removes it."""
    config = copy.deepcopy(made)
    *above, last = key.split(".")
    mapping = config
    for word in above:
        mapping = mapping[word]
    mapping[last] = value
    if value is None:
        del mapping[last]
    return config


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("model.init_args.lora", {"rank": 64}, "model.init_args.lora was None and is {'rank': 64} now"),
        ("model.init_args.adversarial", ADVERSARIAL, "adversarial was None and is AdversarialTraining now"),
        ("model.init_args.size", 512, "model.init_args.size was None and is 512 now"),
        ("model.init_args.regression", None, "model.init_args.regression was Perceptual and is None now"),
        ("trainer.callbacks.evaluation", None, "trainer.callbacks.evaluation was GlyphEvaluation and is None now"),
        ("trainer.callbacks.ema.init_args.on_cpu", True, "ema.init_args.on_cpu was False and is True now"),
        ("trainer.precision", "bf16-mixed", "trainer.precision was None and is 'bf16-mixed' now"),
        ("float32_matmul_precision", "high", "float32_matmul_precision was 'highest' and is 'high' now"),
    ],
)
def test_a_part_that_one_of_them_lacks_is_a_difference(made, key, value, line):
    with pytest.raises(UserError, match="configuration changed") as error:
        require_same_configuration({"config": made}, RECORD, changed(made, key, value))
    assert line in str(error.value)
    assert first_difference(changed(made, key, value), made, COMPARED, MAY_CHANGE) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.init_args.workers", 4),
        ("trainer.log_every_n_steps", 1),
        ("trainer.callbacks.samples", {"class_path": "x"}),
    ],
)
def test_what_changes_no_result_is_none(made, key, value):
    require_same_configuration({"config": made}, RECORD, changed(made, key, value))


@pytest.mark.parametrize(
    "key",
    ["float32_matmul_precision", "trainer.callbacks.ema.init_args.on_cpu", "data.init_args.interleave"],
)
def test_an_argument_that_older_records_lack_has_the_value_of_that_time(made, key):
    require_same_configuration({"config": changed(made, key, None)}, RECORD, made)


def test_a_class_without_arguments_may_be_written_both_ways():
    long, short = (
        {"model": {"class_path": "diffgan.losses.regression.MSE", **more}} for more in ({"init_args": {}}, {})
    )
    assert first_difference(long, short, ["model"], []) is None is first_difference(short, long, ["model"], [])
