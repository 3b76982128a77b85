"""The command `diffgan`: Lightning's verbs (fit, validate, test, predict) and the plain ones (sample, export, ...)."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import diffusers
import transformers
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from callbacks.folders import run_folder
from callbacks.image_checkpoint import ImageCheckpoint
from diffgan.errors import UserError

PLAIN = {
    "sample": ("diffgan.sample:sample", "pictures from a teacher or an exported student"),
    "export": ("diffgan.export:export", "a run's student as a diffusers pipeline directory"),
    "judge": ("diffgan.judging:judge", "figures of a pipeline on a named protocol"),
    "table": ("diffgan.tables:table", "a Markdown table of metrics.json files"),
}


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
            super().setup(trainer, pl_module, trainer.state.fn.value)


class DiffganCLI(LightningCLI):
    """LightningCLI in subclass mode: model and data are `class_path` with `init_args`.

    `fit` continues from the run's last checkpoint, `validate` and `test` judge it, unless `--ckpt_path` says otherwise.
    """

    def before_fit(self) -> None:
        self._find_checkpoint()

    def before_validate(self) -> None:
        if self._find_checkpoint() is None:
            folder = run_folder(self.trainer)
            raise UserError(f"{self.subcommand}: no checkpoint in {folder}; run fit first, or give --ckpt_path")

    before_test = before_validate

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint that was asked for, or the run's last one if there is any."""
        options = self.config_init[self.subcommand]
        options["weights_only"] = True
        asked, newest = options["ckpt_path"], ImageCheckpoint.newest(self.trainer)
        if asked in (None, "last"):
            if newest is None:
                return None
            print(f"diffgan: {self.subcommand} from {newest}", file=sys.stderr)
            options["ckpt_path"] = str(newest)
        elif not Path(asked).is_file():
            raise UserError(f"--ckpt_path {asked}: no such file")
        return Path(options["ckpt_path"])


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


def plain(verb: str, args: Sequence[str]) -> None:
    """One of the plain verbs: a function whose signature is the command's and whose docstring is its help."""
    function = _load(PLAIN[verb][0])
    parser = ArgumentParser(prog=f"diffgan {verb}", description=function.__doc__.split("\n\n")[0])
    parser.add_function_arguments(function, as_group=False)
    function(**parser.instantiate_classes(parser.parse_args(list(args))).as_dict())


def _load(target: str) -> Callable:
    module, name = target.split(":")
    return getattr(__import__(module, fromlist=[name]), name)


def _plain_help() -> str:
    return "plain verbs: " + "; ".join(f"{verb} ({what})" for verb, (_, what) in PLAIN.items())


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
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main(args: Sequence[str] | None = None) -> None:
    """Run `diffgan VERB ...`; args: the words after `diffgan`, by default those of the command line.

    A mistake of the user ends with one line on standard error and exit code 1 (2 for the command line itself).
    """
    args = sys.argv[1:] if args is None else list(args)
    _quieten()
    try:
        plain(args[0], args[1:]) if args and args[0] in PLAIN else lightning(args)
    except Exception as error:
        if (mistake := _mistake(error)) is None:
            raise
        print(f"diffgan: error: {mistake}", file=sys.stderr)
        sys.exit(1)


def _mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error: libraries wrap what a constructor raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


if __name__ == "__main__":
    main()
