"""References between configuration files, the section `recipe`, and callbacks by name."""

import re
from pathlib import Path

import pytest
import yaml

from diffgan.__main__ import main
from tests.cli.test_configs import DEMO, DISTILL, merged
from tests.runs import refused

CIRCLE = """
model: {init_args: {teacher: "${data.init_args.folder}"}}
data: {init_args: {folder: "${model.init_args.teacher}"}}
"""


@pytest.fixture
def file(tmp_path):
    """file(name, text): the path of a configuration file."""

    def made(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return made


def parsed(capsys, files, *options, verb="fit"):
    return merged(capsys, verb, files, *options)


def arguments(config, name):
    return config["trainer"]["callbacks"][name]["init_args"]


# ---- references ----


def test_one_file_changes_the_recipe_of_every_command(capsys, file):
    mine = file("mine.yaml", "recipe: {teacher: my/teacher, pairs: pairs/mine, runs: runs/mine, guidance: 7.5}\n")
    made = parsed(capsys, ["configs/glyphs/pairs.yaml", mine], verb="predict")
    used = parsed(capsys, [*DISTILL, mine])
    assert made["model"]["init_args"]["teacher"] == used["model"]["init_args"]["teacher"] == "my/teacher"
    folders = (made["trainer"]["default_root_dir"], arguments(made, "pairs")["folder"])
    assert {*folders, used["data"]["init_args"]["folder"]} == {"pairs/mine"}
    assert used["trainer"]["logger"]["init_args"]["save_dir"] == "runs/mine"
    for arguments_ in (made["model"]["init_args"], arguments(used, "samples"), arguments(used, "health")):
        assert arguments_["guidance"] == 7.5
    assert "recipe" not in used


def test_a_reference_has_the_value_of_the_whole_command(capsys, file):
    """In a file before or behind, for any key, with later files and options winning."""
    refers = file(
        "refers.yaml", "data: {init_args: {folder: '${model.init_args.teacher}/pairs', seed: '${seed_everything}'}}"
    )
    changes = file("changes.yaml", "model: {init_args: {teacher: other}}")
    for files in ([refers, changes], [changes, refers]):
        config = parsed(capsys, [*DISTILL, *files], "--seed_everything", "5")
        assert config["data"]["init_args"]["folder"] == "other/pairs" and config["data"]["init_args"]["seed"] == 5
    config = parsed(capsys, [*DISTILL, refers, changes], "--model.init_args.teacher=third")
    assert config["data"]["init_args"]["folder"] == "third/pairs"
    config = parsed(capsys, [*DISTILL, refers, changes], "--model.teacher", "fourth")  # jsonargparse's short form
    assert config["data"]["init_args"]["folder"] == "fourth/pairs"


def test_options_may_refer_and_change_the_recipe(capsys):
    options = ("--recipe.teacher", "mine", "--data.init_args.folder=${recipe.teacher}/${trainer.max_epochs}")
    config = parsed(capsys, DISTILL, *options)
    assert config["model"]["init_args"]["teacher"] == "mine" and config["data"]["init_args"]["folder"] == "mine/-1"


def test_references_in_lists_and_class_paths(capsys, file):
    mine = file(
        "mine.yaml",
        "recipe: {loss: diffgan.losses.regression.MSE}\n"
        "trainer: {callbacks: {samples: {init_args: {prompts: ['${recipe.teacher}', 'b']}}}}\n"
        "model: {init_args: {regression: {class_path: '${recipe.loss}'}}}\n",
    )
    config = parsed(capsys, [*DISTILL, mine])
    assert arguments(config, "samples")["prompts"] == ["glyphs", "b"]
    assert config["model"]["init_args"]["regression"]["class_path"] == "diffgan.losses.regression.MSE"


def test_environment_variables(capsys, file, monkeypatch):
    mine = file(
        "mine.yaml", "data: {init_args: {folder: '${oc.env:PAIRS,pairs/here}', batch_size: '${oc.env:BATCH,32}'}}"
    )
    monkeypatch.delenv("PAIRS", raising=False)
    monkeypatch.setenv("BATCH", "48")
    given = parsed(capsys, [*DISTILL, mine])["data"]["init_args"]
    assert given["folder"] == "pairs/here" and given["batch_size"] == 48
    monkeypatch.setenv("PAIRS", "s3://bucket/pairs")
    assert parsed(capsys, [*DISTILL, mine])["data"]["init_args"]["folder"] == "s3://bucket/pairs"


def test_a_reference_that_is_overridden_needs_no_value(capsys, file, monkeypatch):
    monkeypatch.delenv("PAIRS", raising=False)
    mine = file("mine.yaml", "data: {init_args: {folder: '${oc.env:PAIRS}'}}")
    config = parsed(capsys, [*DISTILL, mine], "--data.init_args.folder", "given")
    assert config["data"]["init_args"]["folder"] == "given"
    line = refused(capsys, "fit", "-c", DISTILL[0], "-c", mine, "--print_config")
    assert mine in line and "data.init_args.folder" in line and "PAIRS" in line


def test_another_class_keeps_the_arguments_it_has_too(capsys, file):
    """The files are merged by jsonargparse: references change none of its rules."""
    mine = file("mine.yaml", "trainer: {logger: {class_path: lightning.pytorch.loggers.CSVLogger}}")
    logger = parsed(capsys, [*DISTILL, mine])["trainer"]["logger"]
    assert logger["class_path"].endswith("CSVLogger") and logger["init_args"]["save_dir"] == "runs/glyphs"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: {init_args: {teacher: '${recipe.techer}'}}", ("model.init_args.teacher", "${recipe.techer}")),
        ("model: {init_args: {teacher: '${recipe.teacher'}}", ("model.init_args.teacher", "${recipe.teacher")),
        (CIRCLE, ("model.init_args.teacher", "Recursive")),
        ("recipe: {techer: mine}", ("recipe.techer", "known", "teacher")),
        ("recipe: absent.yaml", ("recipe", "absent.yaml", "no such file")),
        ("recipe: [a]", ("recipe", "['a']")),
        ("trainer: {max_epochs: [\nmodel: 1", ("line 3", "YAML")),
        ("only words", ("key: value",)),
    ],
)  # fmt: skip
def test_mistakes_end_with_one_line_naming_file_and_reference(capsys, file, text, named):
    mine = file("mine.yaml", text)
    line = refused(capsys, "fit", "-c", DISTILL[0], "-c", mine, "--print_config")
    assert line.startswith(f"diffgan: error: {mine}") and len(line.splitlines()) == 1
    for words in named:
        assert words in line


def test_options_with_a_mistake_are_named(capsys):
    command = ("fit", "-c", DISTILL[0], "--print_config")
    assert "--recipe.techer" in refused(capsys, *command, "--recipe.techer", "mine")
    assert "--recipe.steps" in refused(capsys, *("predict", "-c", "configs/sd15/latent_vgg.yaml"), "--recipe.steps=4")
    assert "--data.init_args.folder: ${no.such}" in refused(capsys, *command, "--data.init_args.folder=${no.such}")


# ---- callbacks by name ----


def test_files_and_options_change_single_values_of_callbacks(capsys, file):
    mine = file("mine.yaml", "trainer: {callbacks: {ema: {init_args: {half_life_images: 7}}, evaluation: null}}")
    before = parsed(capsys, DISTILL)
    options = ("--trainer.callbacks.samples.init_args.steps", "20", "--trainer.callbacks.report.name=mine")
    after = parsed(capsys, [*DISTILL, mine], *options)
    assert list(after["trainer"]["callbacks"]) == [
        name for name in before["trainer"]["callbacks"] if name != "evaluation"
    ]
    assert arguments(after, "ema").pop("half_life_images") == 7 != arguments(before, "ema").pop("half_life_images")
    assert arguments(after, "samples").pop("steps") == 20 != arguments(before, "samples").pop("steps")
    assert arguments(after, "report").pop("name") == "mine" != arguments(before, "report").pop("name")
    del before["trainer"]["callbacks"]["evaluation"]
    assert after == before


def test_callbacks_are_added_removed_and_exchanged_by_name(capsys, file):
    exchanged = "{class_path: callbacks.coco_fid.COCOFID, init_args: {protocol: configs/protocols/coco2017-5k.yaml}}"
    mine = file("mine.yaml", f"trainer: {{callbacks: {{evaluation: {exchanged}}}}}")
    stopping = "lightning.pytorch.callbacks.EarlyStopping"
    options = (f"--trainer.callbacks.stop={stopping}", "--trainer.callbacks.stop.monitor", "validation/mse")
    config = parsed(capsys, [*DISTILL, mine], *options, "--trainer.callbacks.health", "null")
    assert list(config["trainer"]["callbacks"])[-2:] == ["comparison", "stop"]
    assert "health" not in config["trainer"]["callbacks"]
    assert config["trainer"]["callbacks"]["stop"]["class_path"] == stopping
    assert arguments(config, "stop")["monitor"] == "validation/mse"
    assert arguments(config, "evaluation")["protocol"] == "configs/protocols/coco2017-5k.yaml"  # nothing of glyphs
    none = file("none.yaml", "trainer: {callbacks: null}")
    assert parsed(capsys, [*DISTILL, none])["trainer"]["callbacks"] is None
    assert parsed(capsys, DISTILL, "--trainer.callbacks", "null")["trainer"]["callbacks"] is None


def test_a_list_of_callbacks_still_works(capsys, file):
    listed = file("list.yaml", "trainer: {callbacks: [{class_path: callbacks.run_report.RunReport}]}")
    (report,) = parsed(capsys, [*DISTILL, listed])["trainer"]["callbacks"]
    assert report["class_path"] == "callbacks.run_report.RunReport"
    appended = parsed(capsys, [*DISTILL, listed], "--trainer.callbacks+=callbacks.progress.ImageProgress")
    assert len(appended["trainer"]["callbacks"]) == 2
    named = file("named.yaml", "trainer: {callbacks: {report: {init_args: {name: mine}}}}")
    line = refused(capsys, "fit", "-c", DISTILL[0], "-c", listed, "-c", named, "--print_config")
    assert named in line and listed in line and "trainer.callbacks" in line
    line = refused(capsys, "fit", "-c", DISTILL[0], "--trainer.callbacks+=callbacks.progress.ImageProgress")
    assert "--trainer.callbacks+" in line


def test_a_mistake_in_a_named_callback_is_refused(capsys, file):
    mine = file("mine.yaml", "trainer: {callbacks: {samples: {init_args: {promts: [a]}}}}")
    line = refused(capsys, "fit", *(word for name in [*DEMO, mine] for word in ("-c", name)))
    assert f"{mine}: trainer.callbacks.samples.init_args.promts" in line and len(line.splitlines()) == 1


def test_examples_of_the_readme_are_configurations(capsys, file):
    """Each adds to the stages of the miniature, in the combinations that the README shows."""
    blocks = re.findall(r"```yaml\n(.*?)```", Path("configs/README.md").read_text(), re.DOTALL)
    mine, distill, references, callbacks = (file(f"{number}.yaml", text) for number, text in enumerate(blocks))
    made = parsed(capsys, ["configs/glyphs/pairs.yaml", mine], verb="predict")
    assert made["trainer"]["default_root_dir"] == "pairs/mine"
    config = parsed(capsys, [*DISTILL, mine, distill])
    assert "evaluation" not in config["trainer"]["callbacks"] and arguments(config, "ema")["half_life_images"] == 10000
    assert parsed(capsys, [*DISTILL, references])["model"]["init_args"]["teacher"] == "my/teacher"
    assert arguments(parsed(capsys, [*DISTILL, callbacks]), "stop")["monitor"] == "validation/mse"


# ---- the record of a run ----


def test_a_run_keeps_values_and_names_and_its_file_is_a_configuration(capsys, file, config, tmp_path):
    """A run with references and names resumes; what it saves has neither references nor a recipe."""
    names = ("ema", "checkpoint", "samples", "report")
    config["trainer"]["callbacks"] = dict(zip(names, config["trainer"]["callbacks"], strict=True))
    config["recipe"] = {"teacher": config["model"]["init_args"]["teacher"]}
    config["model"]["init_args"] |= {"teacher": "${recipe.teacher}", "images": 16}
    command = ["fit", "-c", file("mine.yaml", yaml.safe_dump(config, sort_keys=False))]
    main(command)
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    assert saved["model"]["init_args"]["teacher"] == config["recipe"]["teacher"] and "recipe" not in saved
    assert tuple(saved["trainer"]["callbacks"]) == names and "${" not in (tmp_path / "run" / "fit.yaml").read_text()
    again = parsed(capsys, [str(tmp_path / "run" / "fit.yaml")], "--trainer.callbacks.samples.steps=1")
    assert arguments(again, "samples").pop("steps") == 1 != arguments(saved, "samples").pop("steps")
    assert again["trainer"] == saved["trainer"] and again["model"] == saved["model"]
    main([*command, "--model.init_args.images", "24"])
    assert "24" in str(yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())["model"]["init_args"]["images"])
    assert "recipe.teacher" in refused(capsys, "fit", "-c", str(tmp_path / "run" / "fit.yaml"), "--recipe.teacher=x")
