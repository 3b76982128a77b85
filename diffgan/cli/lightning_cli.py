"""LightningCLI as the commands of this project use it: settings come from the user alone."""

from lightning.pytorch.cli import LightningCLI


class UserSettingsCLI(LightningCLI):
    """LightningCLI that reads no settings from a checkpoint.

    LightningCLI by itself merges the `hyper_parameters` of `--ckpt_path FILE` over the user's configuration, class
    paths included, so a file could change a run or start any command. Checkpoints of this project have none.
    """

    def _parse_ckpt_path(self) -> None:
        """Lightning's step that opens the checkpoint and merges its hyper-parameters: left out."""
