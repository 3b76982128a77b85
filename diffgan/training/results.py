"""When a training writes its results."""

from lightning.pytorch import Trainer


def writes_results(trainer: Trainer) -> bool:
    """Whether this process writes the results of a training now.

    It is the first process of a `fit`, but not of a trial (`fast_dev_run`, the check of the validation at the start),
    which would replace trained weights.
    """
    is_trial = trainer.sanity_checking or trainer.fast_dev_run
    return trainer.is_global_zero and trainer.state.fn == "fit" and not is_trial
