"""Names of version 0.1 and what they are called now. This module is the only place for them.

Records (metrics.json) and curves are read under their old names for good. Old configurations, a run's `fit.yaml` and
verbs keep working until version 0.6, with one line on standard error. Checkpoints need no translation: neither their
keys nor the callbacks with a state were renamed.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from diffgan.errors import UserError

LAST_RELEASE = "0.5"

VERBS = {"judge": "evaluate", "watch": "plot"}

# Classes that a configuration can name.
CLASSES = {
    "callbacks.glyph_judge.GlyphJudge": "callbacks.glyph_evaluation.GlyphEvaluation",
    "datamodules.judgements.BAPPS": "datamodules.two_afc.BAPPS",
    "datamodules.judgements.SyntheticGlyphJudgements": "datamodules.two_afc.SyntheticGlyphTwoAFC",
    "diffgan.adversary.Adversary": "diffgan.methods.adversarial.AdversarialTraining",
    "diffgan.distillation.Diffusion2GAN": "diffgan.methods.diffusion2gan.Diffusion2GAN",
    "diffgan.distributed.Shards": "diffgan.training.strategies.FSDP2Strategy",
    "diffgan.generation.PairGeneration": "diffgan.pairs.generation.PairGeneration",
    "diffgan.perceptual.training.LatentVGGTraining": "diffgan.perceptual.classification.LatentClassificationTraining",
    "diffgan.regression.MSE": "diffgan.losses.regression.MSE",
    "diffgan.regression.Perceptual": "diffgan.losses.regression.Perceptual",
    "diffgan.regression.PseudoHuber": "diffgan.losses.regression.PseudoHuber",
}

# Arguments of the model: `model.init_args.KEY`.
MODEL_ARGUMENTS = {"adversary": "adversarial", "left_out": "omitted_pools"}

# Curves of TensorBoard.
CURVES = {
    "d/right_about_real": "d/accuracy_real",
    "d/right_about_fake": "d/accuracy_fake",
    "d/right_about_mismatched": "d/accuracy_mismatched",
    "d/real": "d/score_real",
    "d/fake": "d/score_fake",
    "d/mismatched": "d/score_mismatched",
    "g/adversarial": "g/gan",
}

# Records.
STAGES = {"judge": "evaluate"}
METRIC_PREFIXES = {"judge/": "evaluation/"}


def current_verb(verb: str) -> str:
    """The verb's name of today."""
    if verb not in VERBS:
        return verb
    _notice(f"the verb {verb} is called {VERBS[verb]} now")
    return VERBS[verb]


def translate_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, or a part of one that overrides another, with the names of today.

    Args:
        config: with the keys `trainer`, `model`, `data`, ... as in a file; is not changed.

    Returns:
        An equal copy if it holds no old name. A list of callbacks stays one, which replaces another file's as a whole.
    """
    if not isinstance(config, dict):  # the parser reports it
        return config
    translated = _rename_classes(config)
    _rename_model_arguments(translated)
    if translated != config:
        _notice("a configuration uses names of version 0.1, which were translated")
    return translated


def translate_words(words: Sequence[str]) -> list[str]:
    """Arguments of the command line with the names of today, e.g. of `--model.init_args.adversary.init_args.weight`."""
    translated = [_translate_word(word) for word in words]
    if translated != list(words):
        _notice("the command line uses names of version 0.1, which were translated")
    return translated


def translate_metrics(record: dict[str, Any]) -> dict[str, Any]:
    """A record (the content of a metrics.json) with the names of today; `record` is not changed."""
    translated = dict(record)
    if isinstance(record.get("metrics"), dict):
        translated["metrics"] = {_metric(name): value for name, value in record["metrics"].items()}
    if record.get("stage") in STAGES:
        translated["stage"] = STAGES[record["stage"]]
    return translated


def _rename_classes(config: Any) -> Any:
    """A copy in which every value that is an old class path is the new one."""
    if isinstance(config, dict):
        return {key: _rename_value(key, value) for key, value in config.items()}
    if isinstance(config, list):
        return [_rename_classes(value) for value in config]
    return CLASSES.get(config, config) if isinstance(config, str) else config


def _rename_value(key: str, value: Any) -> Any:
    """The value of a key; callbacks of Lightning name a metric as their `monitor`."""
    return _metric(value) if key == "monitor" and isinstance(value, str) else _rename_classes(value)


def _rename_model_arguments(config: dict[str, Any]) -> None:
    """Rename arguments of the model, in place."""
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("init_args"), dict):
        return
    for old, new in MODEL_ARGUMENTS.items():
        if old in model["init_args"] and new in model["init_args"]:
            raise UserError(f"model.init_args holds both {old} and its new name {new}; remove {old}")
    model["init_args"] = {MODEL_ARGUMENTS.get(key, key): value for key, value in model["init_args"].items()}


def _translate_word(word: str) -> str:
    if word in CLASSES:
        return CLASSES[word]
    option, equals, value = word.partition("=")
    for old, new in MODEL_ARGUMENTS.items():
        for prefix in (f"--model.init_args.{old}", f"--model.{old}"):
            if option == prefix or option.startswith(f"{prefix}."):
                option = option.replace(old, new, 1)
    return f"{option}{equals}{CLASSES.get(value, value)}"


def _metric(name: str) -> str:
    for old, new in METRIC_PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@cache
def _notice(text: str) -> None:
    """One line on standard error, once in a process."""
    sys.stderr.write(f"diffgan: note: {text}; version {LAST_RELEASE} is the last that understands the old names\n")
