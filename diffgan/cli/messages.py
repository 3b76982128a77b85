"""What libraries print on every run and users cannot act on; omitted in every process of a command."""

import logging
import os
import warnings

IGNORED_WARNINGS = (
    r".*(treespec|many workers|in eval mode|args parameter is intended|torch_dtype|smaller than the logging|"
    r"Checkpoint directory|AMP with fp16|precision=16).*"
)
QUIET_LOGGERS = {  # name -> lowest level that is shown
    "lightning.pytorch.utilities.rank_zero": logging.WARNING,
    "lightning.fabric.utilities.seed": logging.WARNING,
    "lightning.pytorch.trainer.connectors.checkpoint_connector": logging.WARNING,
    "huggingface_hub": logging.ERROR,  # every attempt to reach the hub
}


def filter_messages() -> None:
    """Omit what libraries report on every run and users cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=IGNORED_WARNINGS)
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)


def quiet_model_libraries() -> None:
    """Omit the progress bars and hints of diffusers and transformers."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
