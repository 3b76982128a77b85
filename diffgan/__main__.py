"""The command `diffgan`: Lightning's verbs (fit, validate, test, predict) and the plain ones (sample, export, ...)."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args, get_origin

import diffusers
import transformers
import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.image_checkpoint import ImageCheckpoint
from callbacks.run_folder import run_folder
from diffgan.cli.lightning_cli import UserSettingsCLI
from diffgan.errors import UserError, print_error
from diffgan.training.checkpoints import broken

PLAIN = {
    "sample": ("diffgan.cli.sample:sample", "pictures from a teacher or an exported student"),
    "export": ("diffgan.cli.export:export", "a run's student as a diffusers pipeline directory"),
    "judge": ("diffgan.cli.evaluate:evaluate", "figures of a pipeline on a named protocol"),
    "tables": ("diffgan.cli.tables:tables", "a Markdown table of metrics.json files"),
    "watch": ("diffgan.cli.plot:plot", "the curves that tell whether a run is healthy, in one picture"),
    "reconstruct": (
        "diffgan.cli.reconstruct:reconstruct",
        "how far each perceptual distance leads from noise",
    ),
    "convert": (
        "diffgan.cli.convert:convert",
        "the authors' weights of E-LatentLPIPS as a file of this project",
    ),
}

GROUPS = {
    "pairs": {
        "plan": ("diffgan.cli.pairs.plan:plan", "what a pair set will take: disk, network calls, hours"),
        "status": ("diffgan.cli.pairs.status:status", "how far a set is: done, claimed, rate, time left, disk"),
        "embed": ("diffgan.cli.pairs.embed:embed", "encode every prompt of a set once, for trainings to read"),
        "verify": ("diffgan.cli.pairs.verify:verify", "check every shard, and make a sample of pairs again"),
    },
}

EXPERIMENT = ("seed_everything", "model", "data")  # parts of a configuration that make a run what it is
MAY_CHANGE = (
    "images",
    "cooldown_images",
    "max_steps",
    "steps",
    "cooldown",
    "workers",
    "cache_gb",
)  # a run may be made longer


class RunConfig(SaveConfigCallback):
    """The configuration of every verb that ran in a run's folder, as `<verb>.yaml`: the run's record.

    It is written when everything has been loaded and checked, so a refused command leaves the record as it was.
    """

    def setup(self, trainer, pl_module, stage: str) -> None:
        pass

    def on_sanity_check_start(self, trainer, pl_module) -> None:
        self._save(trainer, pl_module)

    on_fit_start = on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def _save(self, trainer, pl_module) -> None:
        if not self.already_saved:
            self.config_filename = f"{trainer.state.fn.value}.yaml"
            folder = run_folder(trainer)  # asked here, where every process is: only one of them writes
            try:
                super().setup(trainer, pl_module, trainer.state.fn.value)
            except OSError as error:
                raise UserError(
                    f"{folder}: {self.config_filename} cannot be written ({error.strerror or error}); "
                    "choose another folder: --trainer.default_root_dir, or that of --trainer.logger"
                ) from error


class DiffganCLI(UserSettingsCLI):
    """LightningCLI in subclass mode: model and data are `class_path` with `init_args`.

    `fit` continues from the run's last checkpoint, `validate` and `test` judge it, unless `--ckpt_path` says otherwise.
    """

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Raises UserError for flags that the trainer does not take together or on this machine."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:
            raise UserError(f"trainer: {error}") from error

    def before_fit(self) -> None:
        self._find_checkpoint()

    def before_validate(self) -> None:
        if self._find_checkpoint() is None and not getattr(self.model, "complete_as_built", False):
            folder = run_folder(self.trainer)
            raise UserError(f"{self.subcommand}: no checkpoint in {folder}; run fit first, or give --ckpt_path")

    before_test = before_validate

    def before_predict(self) -> None:
        if (asked := self.config_init["predict"]["ckpt_path"]) is not None:
            raise UserError(
                f"predict: --ckpt_path {asked} is not supported: pairs are made by the teacher that "
                "model.init_args.teacher names; leave --ckpt_path out"
            )

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint that was asked for, or the run's last one if there is any."""
        options = self.config_init[self.subcommand]
        options["weights_only"] = True
        asked, newest = options["ckpt_path"], ImageCheckpoint.newest(self.trainer)
        if asked in (None, "last"):
            if newest is None:
                return None
            if asked is None and self.subcommand == "fit":
                self._require_same_experiment()
            print(f"diffgan: {self.subcommand} from {newest}", file=sys.stderr)
            options["ckpt_path"] = str(newest)
        elif asked == "previous":
            options["ckpt_path"] = str(run_folder(self.trainer) / "checkpoints" / "previous.ckpt")
            if self.trainer.is_global_zero and newest is not None and newest.name == "last.ckpt" and broken(newest):
                newest.replace(newest.with_name("broken.ckpt"))  # else it would take the good one's place
        else:
            options["ckpt_path"] = asked
        found = Path(options["ckpt_path"])
        _require_whole(found)
        return found

    def _require_same_experiment(self) -> None:
        """Raises UserError if the run's folder holds another experiment than the one to be continued."""
        record, parser = run_folder(self.trainer) / "fit.yaml", self._parser(self.subcommand)
        if not record.is_file():
            return
        before = _flat(yaml.safe_load(record.read_text()))
        now = _flat(yaml.safe_load(parser.dump(self.config[self.subcommand], skip_none=False)))
        for key in (key for key in now if key in before and key.split(".")[0] in EXPERIMENT):
            if before[key] != now[key] and key.split(".")[-1] not in MAY_CHANGE:
                raise UserError(
                    f"{record}: {key} was {before[key]!r} and is {now[key]!r} now; choose another folder "
                    "(trainer.logger), or go on with the change on purpose: --ckpt_path last"
                )


def _require_whole(checkpoint: Path) -> None:
    """Raises UserError if a checkpoint is not one file, or is broken.

    A directory (a sharded checkpoint) is refused: nothing here writes one, and PyTorch unpickles what lies in it.
    """
    if checkpoint.is_dir():
        raise UserError(f"--ckpt_path {checkpoint}: is a directory; name a file, e.g. checkpoints/last.ckpt of a run")
    if not checkpoint.is_file():
        raise UserError(f"--ckpt_path {checkpoint}: no such file")
    if (reason := broken(checkpoint)) is None:
        return
    before, offer = checkpoint.with_name("previous.ckpt"), ""
    if before.is_file() and before != checkpoint:
        offer = f"; {before} is the one before: --ckpt_path previous"
    raise UserError(f"{checkpoint}: the checkpoint is broken ({reason}){offer}")


def _flat(config: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(config, dict):
        return {name: config}
    return {k: v for key, value in config.items() for k, v in _flat(value, f"{name}.{key}" if name else key).items()}


def lightning(args: Sequence[str]) -> None:
    """One of Lightning's verbs."""
    DiffganCLI(
        args=list(args),
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=RunConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "diffgan", "epilog": _plain_help()},
    )


def plain(verb: str, target: str, args: Sequence[str]) -> None:
    """One of the plain verbs: a function whose signature is the command's and whose docstring is its help.

    Parameters without a default are words in their order, a list takes one or more words, the others are options; a
    list that is keyword-only is an option to be repeated, a bool an option without a value.
    """
    function = _load(target)
    documentation = parse_docstring(function.__doc__)
    parser = ArgumentParser(prog=f"diffgan {verb}", description=documentation.short_description)
    described = {parameter.arg_name: parameter.description for parameter in documentation.params}
    special = {name: p for name, p in signature(function).parameters.items() if _is_list(p) or p.annotation is bool}
    for name, parameter in special.items():
        if parameter.annotation is bool:
            parser.add_argument(f"--{name}", action="store_true", help=described[name])
        elif parameter.kind is Parameter.KEYWORD_ONLY:
            parser.add_argument(f"-{name[0]}", f"--{name}", action="append", required=True, help=described[name])
        else:
            parser.add_argument(name, nargs="+", type=get_args(parameter.annotation)[0], help=described[name])
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(special))
    function(**parser.parse_args(list(args)).as_dict())


def _is_list(parameter: Parameter) -> bool:
    return get_origin(parameter.annotation) is list


def group(name: str, args: Sequence[str]) -> None:
    """One verb of a group of plain ones."""
    parser = argparse.ArgumentParser(prog=f"diffgan {name}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    for verb, (_, what) in GROUPS[name].items():
        verbs.add_parser(verb, help=what)
    verb = parser.parse_args(args[:1]).verb
    plain(f"{name} {verb}", GROUPS[name][verb][0], args[1:])


def _load(target: str) -> Callable:
    module, name = target.split(":")
    return getattr(__import__(module, fromlist=[name]), name)


def _plain_help() -> str:
    groups = {f"{name} {verb}": told for name, verbs in GROUPS.items() for verb, told in verbs.items()}
    return "plain verbs: " + "; ".join(f"{verb} ({what})" for verb, (_, what) in (PLAIN | groups).items())


NOISE = (
    r".*(treespec|many workers|in eval mode|args parameter is intended|torch_dtype|smaller than the logging|"
    r"Checkpoint directory).*"
)


def _quieten() -> None:
    """Leave out what libraries say on every run and nobody can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=NOISE)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checkpoints = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", checkpoints):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every attempt to reach the hub


def main(args: Sequence[str] | None = None) -> None:
    """Run `diffgan VERB ...`; args: the words after `diffgan`, by default those of the command line.

    A mistake of the user ends with one line on standard error and exit code 1 (2 for the command line itself), Ctrl-C
    with one line and 130, where Lightning would say 1.
    """
    args = sys.argv[1:] if args is None else list(args)
    _quieten()
    try:
        _run(args)
    except Exception as error:
        if (mistake := _mistake(error)) is None:
            raise
        print_error(mistake)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if getattr(rank_zero_only, "rank", 0) == 0:
            more = "; the same command goes on" if args[:1] in (["fit"], ["predict"]) else ""
            sys.stderr.write(f"diffgan: interrupted{more}\n")
        sys.exit(128 + signal.SIGINT)


def _run(args: Sequence[str]) -> None:
    verb = args[0] if args else None
    if verb in PLAIN:
        plain(verb, PLAIN[verb][0], args[1:])
    elif verb in GROUPS:
        group(verb, args[1:])
    else:
        lightning(args)


def _mistake(error: BaseException | None) -> Exception | None:
    """The user's mistake behind an error: libraries wrap what a constructor raises."""
    while error is not None and not isinstance(error, UserError | MisconfigurationException):
        if "BackendCompilerFailed" in [kind.__name__ for kind in type(error).__mro__]:  # its module takes long to load
            first, *more = str(error).splitlines()
            told = [first, *(line for line in more if "error:" in line)][:2]  # the compiler's own words, if there are
            return UserError(f"compile: torch.compile failed ({': '.join(told)}); mend that, or leave `compile` out")
        error = error.__cause__ or error.__context__
    return error


if __name__ == "__main__":
    main()
