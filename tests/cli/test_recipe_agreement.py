"""The stages of a recipe, its callbacks and the commands that evaluate its teacher use one teacher, in one way.

A number of the student belongs beside one of its teacher only if both come from the same guidance, steps and protocol.
"""

import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from diffgan.cli.demo import FULL, commands
from diffgan.evaluation.protocols.coco import read_protocol
from tests.cli.test_configs import arguments, merged
from tests.runs import write

README = Path("configs/README.md").read_text()


class Recipe(NamedTuple):
    """folder: in configs.  overlays: files that pairs.yaml and distill.yaml are both used with."""

    folder: str
    overlays: tuple[str, ...] = ()

    def stage(self, name: str) -> list[str]:
        return [f"configs/{self.folder}/{name}.yaml", *self.overlays]


SD15, SDXL, GLYPHS = Recipe("sd15"), Recipe("sdxl"), Recipe("glyphs")
GUIDANCE_8 = Recipe("sd15", ("configs/sd15/guidance-8.yaml",))


class Agreed(NamedTuple):
    """What pairs, callbacks and the evaluation of the teacher must have in common."""

    teacher: str
    guidance: float
    steps: int


def uses(capsys, recipe: Recipe, *differences: str) -> dict[str, Agreed]:
    """How each place of a recipe calls the teacher; differences: further files for distill.yaml alone."""
    made = merged(capsys, "predict", recipe.stage("pairs"))
    used = merged(capsys, "fit", [*recipe.stage("distill"), *differences])
    pairs, teacher = made["model"]["init_args"], used["model"]["init_args"]["teacher"]
    places = {"pairs": Agreed(pairs["teacher"], pairs["guidance"], pairs["steps"])}
    for name in ("samples", "health"):
        callback = arguments(used, name)
        places[name] = Agreed(teacher, callback["guidance"], callback["steps"])
    return places


def evaluations(text: str) -> list[dict[str, str]]:
    """The `diffgan evaluate` commands of a text: pipeline, output, and options by name."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.startswith("diffgan evaluate ") else []
        if words:
            options = dict(zip((word.removeprefix("--") for word in words[4::2]), words[5::2], strict=True))
            commands.append({"pipeline": words[2], "output": words[3], **options})
    return commands


def documented(recipe: Recipe, folder: str) -> list[dict[str, str]]:
    """The documented evaluations of the teacher whose output lies in the folder of a recipe's runs."""
    return [each for each in evaluations(README) if each["output"].startswith(f"{folder}/teacher")]


def differing(places: dict[str, Agreed]) -> list[str]:
    """Places that do not agree with the pairs."""
    return [name for name, agreed in places.items() if agreed != places["pairs"]]


@pytest.mark.parametrize("recipe", [SD15, GUIDANCE_8, SDXL], ids=["sd15", "guidance-8", "sdxl"])
def test_teacher_is_called_in_one_way(capsys, recipe):
    places = uses(capsys, recipe)
    run = merged(capsys, "fit", recipe.stage("distill"))["trainer"]["logger"]["init_args"]
    (command,) = documented(recipe, f"{run['save_dir']}/{run['name']}")
    places["evaluate"] = Agreed(command["pipeline"], float(command["guidance"]), int(command["steps"]))
    assert differing(places) == []
    test = merged(capsys, "test", recipe.stage("distill"))
    assert arguments(test, "evaluation")["protocol"] == command["protocol"]
    assert arguments(test, "evaluation")["cache"] == command["cache"]


def test_glyph_teacher_is_called_in_one_way(capsys, tmp_path, monkeypatch):
    """Its pairs are of 20 steps; samples show it, and `make glyphs` evaluates it, at 50."""
    monkeypatch.chdir(tmp_path)  # where nothing is evaluated yet
    places = uses(capsys, GLYPHS)
    fifty, one = evaluations("\n".join(_line(words) for words in commands(FULL, gpu=False)))
    assert (one["steps"], one["guidance"]) == ("1", "1")
    assert places.pop("samples") == Agreed(fifty["pipeline"], float(fifty["guidance"]), int(fifty["steps"]))
    assert differing(places) == [] and places["pairs"].guidance == float(fifty["guidance"])
    assert places["pairs"].steps == 20


def _line(words: list[str]) -> str:
    """A command as the documentation writes it, `--option value` in place of `--option=value`."""
    return shlex.join(part for word in ["diffgan", *words] for part in word.split("=", 1))


BROKEN = {
    "samples": {"trainer": {"callbacks": {"samples": {"init_args": {"guidance": 7.5}}}}},
    "health": {"trainer": {"callbacks": {"health": {"init_args": {"steps": 20}}}}},
}


@pytest.mark.parametrize("place", BROKEN)
def test_place_that_differs_is_found(capsys, tmp_path, place):
    """As a difference that repeats a value instead of setting `recipe` would make it."""
    assert differing(uses(capsys, SD15, write(tmp_path / "broken.yaml", BROKEN[place]))) == [place]


def test_captions_of_protocols_are_made_as_documented():
    """Every protocol reads a list that a documented command draws, long enough for it."""
    words = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("diffgan coco-cap")]
    drawn = {target: int(count) for _, _, _, count, target in words}
    for file in Path("configs/protocols").glob("*.yaml"):
        protocol = read_protocol(file)
        assert protocol.name == file.stem and protocol.images <= drawn[protocol.captions]


def test_fit_is_followed_by_a_part_of_the_test(capsys):
    """coco2014-5k: the first images of coco2014-30k, from the same noises, against the same real images."""
    used = merged(capsys, "fit", SD15.stage("distill"))
    short = read_protocol(Path(arguments(used, "progress_evaluation")["protocol"]))
    complete = read_protocol(Path(arguments(used, "evaluation")["protocol"]))
    assert (short.images, complete.images) == (5000, 30000)
    for name in ("captions", "seed_base", "side", "reference"):
        assert getattr(short, name) == getattr(complete, name)


@pytest.mark.parametrize(("recipe", "evaluation"), [(SD15, "progress_evaluation"), (SDXL, "evaluation")])
def test_the_best_checkpoint_is_that_of_lowest_fid(capsys, recipe, evaluation):
    used = merged(capsys, "fit", recipe.stage("distill"))
    follows = arguments(used, evaluation)
    assert follows["every_images"] == 1_024_000 and follows["extractor"] is None  # FID's Inception
    assert arguments(used, "checkpoint")["monitor"] == "evaluation/fid"
    batch, validation = used["data"]["init_args"]["batch_size"], used["trainer"]["val_check_interval"]
    assert follows["every_images"] % (batch * validation) == 0
    assert used["model"]["init_args"]["images"] % follows["every_images"] == 0  # the last weights are evaluated too
