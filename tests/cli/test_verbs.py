"""The table of verbs, exit codes, and what a light command imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from diffgan.__main__ import main
from diffgan.cli.verbs import VERBS

HEAVY = ("torch", "lightning", "diffusers", "transformers")
OLD = Path(__file__).parents[1] / "data" / "v0.1"
SHOW_MODULES = """
import atexit, sys
atexit.register(lambda: sys.stderr.write("\\nLOADED " + repr(sorted({name.split(".")[0] for name in sys.modules}))))
from diffgan.__main__ import main
main(sys.argv[1:])
"""


def run_alone(*words) -> tuple[subprocess.CompletedProcess, set[str]]:
    """A command in a fresh interpreter, and the packages it has imported at its end."""
    command = [sys.executable, "-c", SHOW_MODULES, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done, set(ast.literal_eval(done.stderr.rpartition("LOADED ")[2]))


def exit_code(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


LIGHT = {
    "help": ("--help",),
    "version": ("--version",),
    "help of a group": ("pairs", "--help"),
    "unknown verb": ("exprot",),
    "tables of what is no record": ("tables", OLD / "fit.yaml"),
    "help of tables": ("tables", "--help"),
    "render of no file": ("render", "nothing.md"),
    "help of plot": ("plot", "--help"),
    "help of report": ("report", "--help"),
    "report of no run": ("report", OLD),
    "status": ("pairs", "status", OLD / "pairs"),
}


COLUMNS_OF_METRICS = pytest.mark.xfail(strict=True, reason="columns are attributes of torchmetrics classes")
MARKS = {"tables": [COLUMNS_OF_METRICS]}


@pytest.mark.parametrize("words", [pytest.param(words, id=id, marks=MARKS.get(id, [])) for id, words in LIGHT.items()])
def test_light_commands_import_no_model_library(words):
    _, loaded = run_alone(*words)
    assert "diffgan" in loaded
    assert not loaded & set(HEAVY)


def test_help_lists_every_verb_in_its_group(capsys):
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith(verb.help)
        assert text.index(f"\n{verb.group}:") < text.index(line)


def test_lines_of_the_help_fit_a_terminal(capsys):
    assert exit_code("--help") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_version_is_the_package_s(capsys):
    from importlib.metadata import version

    main(["--version"])
    assert capsys.readouterr().out == f"diffgan {version('diffgan')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["exprot"], "unknown verb 'exprot'; did you mean export?"),
        (["evalute"], "did you mean evaluate?"),
        (["pairs", "stats"], "unknown verb 'pairs stats'; did you mean pairs status?"),
        (["pairs"], "pairs requires a verb: pairs plan, pairs status"),
        (["zzz"], "see diffgan --help"),
    ],
)
def test_unknown_verb_names_the_nearest(words, message, capsys):
    assert exit_code(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("diffgan: error: ") and error.count("\n") == 1


def test_no_verb_prints_the_table_and_fails(capsys):
    assert exit_code() == 2
    assert "pairs status" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in VERBS if name not in ("fit", "validate", "test", "predict")])
def test_every_plain_verb_explains_itself(name, capsys):
    assert exit_code(*name.split(), "--help") == 0
    assert f"usage: diffgan {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "run"], "diffgan export: the following arguments are required: output"),
        (["sample", "digit 7", "--count", "many"], "diffgan sample: count: 'many' is not valid, expected int"),
        (["tables", "a.json", "--outptu", "b"], "unrecognized arguments: --outptu b"),
    ],
)
def test_mistakes_of_the_command_line_are_one_line(words, message, capsys):
    assert exit_code(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("diffgan: error: ") and error.count("\n") == 1


def test_options_may_stand_before_the_verb(capsys):
    assert exit_code("-c", "nothing.yaml", "fit") == 2
    assert "nothing.yaml" in capsys.readouterr().err
