"""The commands of `diffgan demo`: each is one that its verb takes, and a failing one ends the demo."""

import os
from pathlib import Path

import pytest

from diffgan.cli.demo import DEMO, FULL, commands
from diffgan.cli.main import _load
from diffgan.cli.plain import parser_of
from diffgan.cli.sweeps.configuration import configuration
from diffgan.cli.verbs import LIGHTNING, VERBS
from tests.runs import refused

STAGES = ["predict", "fit", "evaluate", "evaluate", "test", "export", "tables", "report"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)


def parsed(words):
    """What a command's own parser makes of its words."""
    verb, *arguments = words
    if VERBS[verb].target == LIGHTNING:
        return configuration(verb, arguments)
    return parser_of(verb, _load(VERBS[verb].target)).parse_args(arguments).as_dict()


@pytest.mark.parametrize(("size", "gpu"), [(DEMO, False), (FULL, True)])
def test_every_command_is_one_that_its_verb_takes(size, gpu):
    made = list(commands(size, gpu))
    assert [words[0] for words in made] == STAGES
    predict, fit, teacher, one_step, test, export, tables, report = map(parsed, made)
    assert predict["trainer"]["callbacks"]["pairs"]["init_args"]["folder"] == fit["data"]["init_args"]["folder"]
    assert fit["trainer"]["logger"]["init_args"]["save_dir"] == str(size.runs) == str(export["output"].parent)
    assert teacher["protocol"] == test["trainer"]["callbacks"]["evaluation"]["init_args"]["protocol"]
    assert teacher["guidance"] == predict["model"]["init_args"]["guidance"]
    assert (teacher["steps"], one_step["steps"]) == (size.steps, 1)
    records = [teacher["output"], one_step["output"]]
    assert records == tables["records"][:2] == [Path(file) for file in report["beside"]]


def test_a_teacher_is_evaluated_again_only_if_its_record_is_older_than_it():
    for name in ("teacher-20.json", "teacher-1.json"):
        record = DEMO.runs / name
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    assert [words[0] for words in commands(DEMO, gpu=False)] == [name for name in STAGES if name != "evaluate"]
    os.utime(DEMO.runs / "teacher-1.json", (0, 0))
    assert [words[0] for words in commands(DEMO, gpu=False)].count("evaluate") == 1


def test_a_failing_command_ends_the_demo(capfd):
    Path("pairs").write_text("in the way of the folder")
    error = refused(capfd, "demo")
    assert "demo: predict failed, see above; the same command resumes" in error and "diffgan fit" not in error
