"""LightningCLI as the commands of this project use it, and the verbs fit, validate, test, predict."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from callbacks.image_checkpoint import ImageCheckpoint
from callbacks.run_folder import run_folder
from diffgan.cli.class_names import import_named
from diffgan.cli.config_files import ConfigParser, Prepared, prepare
from diffgan.cli.renamed import translate_config, translate_words
from diffgan.errors import UserError
from diffgan.training.checkpoints import find_damage

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


class UserSettingsCLI(LightningCLI):
    """LightningCLI whose settings come from the command line and its configuration files alone.

    Files may refer to values of each other and name their callbacks: see `config_files`. No settings are read from a
    checkpoint: LightningCLI by itself merges the `hyper_parameters` of `--ckpt_path FILE` over the user's
    configuration, class paths included, so a file could change a run or start any command.
    """

    def __init__(self, args: Sequence[str], **kwargs: Any) -> None:
        words = translate_words(args)
        import_named(words)
        super().__init__(args=words, parser_class=ConfigParser, **kwargs)

    def parse_arguments(self, parser: ConfigParser, args: Sequence[str]) -> None:
        """Parse the command line; raises UserError for a file or a reference that cannot be read."""
        prepared = self.prepare(args)
        for each in (parser, *self._subcommand_parsers.values()):
            each.prepared, each.given = prepared, tuple(args)
        super().parse_arguments(parser, prepared.words)

    def prepare(self, args: Sequence[str]) -> Prepared:
        """The command line and the texts of its files for jsonargparse."""
        return prepare(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning's step that opens the checkpoint and merges its hyper-parameters: left out."""


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

    `fit` continues from the run's last checkpoint, `validate` and `test` use it, unless `--ckpt_path` says otherwise.
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
        option, newest = options["ckpt_path"], ImageCheckpoint.newest(self.trainer)
        if option in (None, "last"):
            if newest is None:
                return None
            if option is None and self.subcommand == "fit":
                self._require_same_experiment()
            print(f"diffgan: {self.subcommand} from {newest}", file=sys.stderr)
            options["ckpt_path"] = str(newest)
        elif option == "previous":
            options["ckpt_path"] = str(run_folder(self.trainer) / "checkpoints" / "previous.ckpt")
            if self.trainer.is_global_zero:
                _set_aside_if_broken(newest)
        else:
            options["ckpt_path"] = option
        checkpoint = Path(options["ckpt_path"])
        _require_whole(checkpoint)
        return checkpoint

    def _require_same_experiment(self) -> None:
        """Raises UserError if the run's folder holds another experiment than the one to be continued."""
        record, parser = run_folder(self.trainer) / "fit.yaml", self._parser(self.subcommand)
        if not record.is_file():
            return
        before = _flat(translate_config(yaml.safe_load(record.read_text())))
        now = _flat(yaml.safe_load(parser.dump(self.config[self.subcommand], skip_none=False)))
        for key in (key for key in now if key in before and key.split(".")[0] in EXPERIMENT):
            if before[key] != now[key] and key.split(".")[-1] not in MAY_CHANGE:
                raise UserError(
                    f"{record}: {key} was {before[key]!r} and is {now[key]!r} now; choose another folder "
                    "(trainer.logger), or continue with the change on purpose: --ckpt_path last"
                )


def _set_aside_if_broken(newest: Path | None) -> None:
    """Rename a broken `last.ckpt`, which the next save would otherwise keep in the place of the good one."""
    if newest is not None and newest.name == "last.ckpt" and find_damage(newest):
        newest.replace(newest.with_name("broken.ckpt"))


def _require_whole(checkpoint: Path) -> None:
    """Raises UserError if a checkpoint is not one file, or is broken.

    A directory (a sharded checkpoint) is refused: nothing here writes one, and PyTorch unpickles what lies in it.
    """
    if checkpoint.is_dir():
        raise UserError(f"--ckpt_path {checkpoint}: is a directory; name a file, e.g. checkpoints/last.ckpt of a run")
    if not checkpoint.is_file():
        raise UserError(f"--ckpt_path {checkpoint}: no such file")
    if (reason := find_damage(checkpoint)) is None:
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


def run_lightning(args: Sequence[str]) -> None:
    """Run one of Lightning's verbs; args: the verb and its arguments."""
    DiffganCLI(
        args=list(args),
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=RunConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "diffgan"},
    )
