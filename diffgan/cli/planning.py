"""What the verbs `plan` and `pairs plan` share: a configuration that is built but not run, and the printed lines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from diffgan.cli.lightning_cli import UserSettingsCLI

LABEL_WIDTH = 15  # characters, at least


class ConfigReader(UserSettingsCLI):
    """Builds what `fit` or `predict` would run, and does not run it."""

    def __init__(self, verb: str, config: Sequence[str]):
        words = [verb]
        for file in config:
            words += ["-c", file]
        super().__init__(args=words, auto_configure_optimizers=False, save_config_callback=None)

    def instantiate_trainer(self, **kwargs) -> pl.Trainer:
        return pl.Trainer(accelerator="cpu", logger=False)  # the configured one may need devices that are not here

    def fit(self, **kwargs) -> None:
        pass

    predict = fit


def callbacks_of(trainer: Mapping[str, Any]) -> list[pl.Callback]:
    """The callbacks of a trainer's configuration, which are a list or have names."""
    callbacks = trainer["callbacks"]
    return list(callbacks.values() if isinstance(callbacks, dict) else callbacks or [])


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Print labels and texts in two columns; a text without a label continues the line above."""
    lines = list(lines)
    width = max(LABEL_WIDTH, *(len(label) + 2 for label, _ in lines))
    print("\n".join(f"{label:<{width}}{text}".rstrip() for label, text in lines))
