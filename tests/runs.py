"""Runs of the command in tests: their configurations, checkpoints and refusals."""

import copy

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffgan.__main__ import main


def write(path, config):
    path.write_text(yaml.safe_dump(config))
    return str(path)


def named(config, name):
    """The same run in another folder."""
    other = copy.deepcopy(config)
    other["trainer"]["logger"]["init_args"]["name"] = name
    return other


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def refused(capsys, *args):
    """The one line on standard error that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert stop.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def curves(folder):
    """Every logged value by curve and images; where a run did a stretch again, all values that were logged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    values = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            values.setdefault((name, event.step), set()).add(event.value)
    return values
