"""LightningCLI as the commands of this project use it, and the verbs fit, validate, test, predict."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from callbacks.compare_pairs import ComparePairs
from callbacks.image_checkpoint import ImageCheckpoint
from callbacks.run_folder import run_folder
from diffgan.cli.class_names import import_named
from diffgan.cli.config_files import ConfigParser, Prepared, prepare, with_configs_found
from diffgan.cli.config_values import check_values
from diffgan.cli.renamed import translate_words
from diffgan.cli.report import report
from diffgan.cli.resuming import (
    NAMED,
    FirstProcess,
    choose_checkpoint,
    lock_run,
    require_file,
    require_same_experiment,
    require_whole,
    set_aside_if_broken,
)
from diffgan.errors import UserError
from diffgan.methods.base import Distillation
from diffgan.pairs.devices import require_precision
from diffgan.storage.outputs import require_folder_place
from diffgan.teachers.outside import use_adapter
from diffgan.training.checkpoints import restore_error
from diffgan.training.precision import HIGHEST

ADAPTER = "module:Class or file.py:Class of a teacher family outside the package; it is imported, so it is a program"


class UserSettingsCLI(LightningCLI):
    """LightningCLI whose settings come from the command line and its configuration files alone.

    Files may refer to values of each other and name their callbacks: see `config_files`. No settings are read from a
    checkpoint: LightningCLI by itself merges the `hyper_parameters` of `--ckpt_path FILE` over the user's
    configuration, class paths included, so a file could change a run or start any command.
    """

    def __init__(self, args: Sequence[str], **kwargs: Any) -> None:
        words = with_configs_found(translate_words(args))
        import_named(words)
        super().__init__(args=words, parser_class=ConfigParser, **kwargs)

    def add_arguments_to_parser(self, parser: ConfigParser) -> None:
        """Add what is set before anything is built."""
        parser.add_argument("--adapter", type=str, default=None, help=ADAPTER)

    def before_instantiate_classes(self) -> None:
        if (adapter := self._get(self.config, "adapter")) is not None:
            use_adapter(adapter)

    def parse_arguments(self, parser: ConfigParser, args: Sequence[str]) -> None:
        """Parse the command line; raises UserError for a file, a reference or a value that cannot be used."""
        prepared = self.prepare(args)
        for each in (parser, *self._subcommand_parsers.values()):
            each.prepared, each.given = prepared, tuple(args)
        super().parse_arguments(parser, prepared.words)
        check_values(self.config.subcommand, self.config[self.config.subcommand].as_dict())

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

    def add_arguments_to_parser(self, parser: ConfigParser) -> None:
        """Add what is set before anything is computed."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default=HIGHEST,
            help="torch.set_float32_matmul_precision: with high a GPU multiplies float32 matrices in TF32, which is "
            "faster and less exact; the gradient penalty is always computed in float32",
        )

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        torch.set_float32_matmul_precision(self._get(self.config, "float32_matmul_precision"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Raises UserError for flags that the trainer does not take together or on this machine."""
        if self.config_init[self.subcommand]["trainer"].get("fast_dev_run"):
            self._scratch = tempfile.TemporaryDirectory(prefix="diffgan-")  # it leaves no files, and resumes from none
            kwargs = {**kwargs, "default_root_dir": self._scratch.name}
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:
            raise UserError(f"trainer: {error}") from error
        require_precision(self._get(self.config_init, "trainer", default={}).get("precision"), trainer.precision)
        return trainer

    def before_fit(self) -> None:
        self._first = FirstProcess(self.trainer)
        with self._first.withdrawing():
            self._first.check(lock_run(self.trainer))
            self._find_checkpoint(self._first)
        self._first.end_checks()

    def fit(self, **kwargs: Any) -> None:
        """Train; a fit that is refused leaves no folder."""
        with self._first.withdrawing():
            if kwargs.get("ckpt_path") is None and isinstance(self.model, Distillation):
                self.model.check_new_run()
            self.trainer.fit(**kwargs)

    def before_validate(self) -> None:
        first = FirstProcess(self.trainer)
        if self._find_checkpoint(first) is None and not getattr(self.model, "complete_as_built", False):
            if self.trainer.fast_dev_run:
                raise UserError(f"{self.subcommand}: fast_dev_run reads no run folder; give --ckpt_path FILE")
            folder = run_folder(self.trainer)
            raise UserError(f"{self.subcommand}: no checkpoint in {folder}; run fit first, or give --ckpt_path")
        if self.trainer.loggers:
            folder = run_folder(self.trainer)
            first.check(lambda: require_folder_place(folder))
        first.end_checks()

    before_test = before_validate

    def after_test(self) -> None:
        """Write the page of the run, in the process that has stored what it shows."""
        for callback in self.trainer.callbacks:
            if isinstance(callback, ComparePairs) and callback.has_written:
                report(callback.folder)

    def before_predict(self) -> None:
        if self.trainer.fast_dev_run:
            raise UserError(
                "predict: fast_dev_run would begin a pair set; for a trial give another folder and few pairs: "
                "data.init_args.pairs"
            )
        if (precision := self._get(self.config, "float32_matmul_precision")) != HIGHEST:
            raise UserError(
                f"predict: float32_matmul_precision {precision} is not supported: the manifest states the precision of "
                "the pairs; use --trainer.precision"
            )
        if (asked := self.config_init["predict"]["ckpt_path"]) is not None:
            raise UserError(
                f"predict: --ckpt_path {asked} is not supported: pairs are made by the teacher that "
                "model.init_args.teacher names; leave --ckpt_path out"
            )

    def _find_checkpoint(self, first: FirstProcess) -> Path | None:
        """The checkpoint that was asked for, or the run's last one if there is any."""
        options = self.config_init[self.subcommand]
        options["weights_only"] = True
        asked = options["ckpt_path"]
        checkpoint = choose_checkpoint(self.trainer, asked)
        if checkpoint is None:
            options["ckpt_path"] = None
            return None
        if asked is None and self.subcommand == "fit":
            parser = self._parser(self.subcommand)
            config = yaml.safe_load(parser.dump(self.config[self.subcommand], skip_none=False))
            require_same_experiment(run_folder(self.trainer) / "fit.yaml", config)
        if asked in (None, "last"):
            print(f"diffgan: {self.subcommand} from {checkpoint}", file=sys.stderr)
        if asked in NAMED:
            newest = ImageCheckpoint.newest(self.trainer)
            first.check(lambda: set_aside_if_broken(newest))
        require_file(checkpoint)
        first.check(lambda: require_whole(checkpoint))
        options["ckpt_path"] = str(checkpoint)
        return checkpoint


def run_lightning(args: Sequence[str]) -> None:
    """Run one of Lightning's verbs; args: the verb and its arguments."""
    try:
        DiffganCLI(
            args=list(args),
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "diffgan"},
        )
    except UserError:
        raise
    except Exception as error:
        if (mistake := restore_error(error)) is None:
            raise
        raise mistake from error
