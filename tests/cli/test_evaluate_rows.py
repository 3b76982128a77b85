"""`diffgan evaluate` of row files, and its folders of images: resumed, refused, made by several processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, LCMScheduler
from PIL import Image

from diffgan.__main__ import main
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.glyphs import GLYPH_PROTOCOLS, GlyphProtocol
from diffgan.images import to_uint8
from tests.cli.test_recipes import lay_out_protocol
from tests.pair_sets import refusal
from tests.pipelines import random_inception

PROTOCOL = GlyphProtocol("tiny", images=12, diversity_prompts=2, images_per_prompt=2)
GLYPHS = ["--protocol", "tiny", "--batch_size", "5"]
DDIM = {"class": "DDIMScheduler", "timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
IMAGES = 7


@pytest.fixture
def glyphs(tmp_path, monkeypatch):
    """The word that names a row: two steps of the glyph teacher, called by diffusers."""
    monkeypatch.setitem(GLYPH_PROTOCOLS, "tiny", PROTOCOL)
    monkeypatch.chdir(tmp_path)
    return row("glyphs.yaml", pipeline="glyphs", scheduler=DDIM, steps=2, guidance=3, name="teacher by diffusers")


@pytest.fixture
def lcm(tiny_pipeline, tmp_path, monkeypatch):
    """A row: a tiny pipeline whose scheduler adds noise at its steps."""
    monkeypatch.chdir(tmp_path)
    return row("lcm.yaml", pipeline=str(tiny_pipeline), scheduler={"class": "LCMScheduler"}, steps=2, guidance=1)


@pytest.fixture
def command(lcm, tmp_path):
    """The words that save the images of seven prompts in the folder `images`."""
    (tmp_path / "prompts.txt").write_text("".join(f"digit {i}\n" for i in range(IMAGES)))
    return ["evaluate", lcm, "one.json", "--prompts", "prompts.txt", "--batch_size", "2", "--save_images", "images"]


def row(file, **values) -> str:
    Path(file).write_text(yaml.safe_dump({"name": "a row", "guidance": 0} | values))
    return file


def changed(file, **values) -> None:
    row(file, **(yaml.safe_load(Path(file).read_text()) | values))


def record(file) -> dict:
    return json.loads(Path(file).read_text())


def compared(file) -> dict[str, float]:
    values = record(file)["metrics"]
    values.pop("evaluation/seconds_per_image", None)
    return values


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def interrupt(folder, *missing: str) -> None:
    """Leave a folder as a run leaves it that was killed before it had written these images."""
    Path(folder, "images.json").rename(Path(folder, "images.started.json"))
    for name in missing:
        Path(folder, name).unlink()


# ---- records ----


def test_the_glyph_teacher_as_a_row_is_the_teacher(glyphs, capsys):
    main(["evaluate", glyphs, "row.json", *GLYPHS])
    own_solver = ["evaluate", "glyphs", "own.json", *GLYPHS, "--steps", "2", "--guidance", "3", "--save_images", "own"]
    main(own_solver)
    by_diffusers, own = compared("row.json"), compared("own.json")
    assert by_diffusers == pytest.approx(own, rel=2e-3, abs=1e-3)
    assert by_diffusers.keys() == own.keys() and "evaluation/noise_share" in own
    made, teacher = record("row.json"), record("own.json")
    assert (made["name"], teacher["name"]) == ("teacher by diffusers", "teacher") and made["network_calls"] == 2
    assert made["pipeline"] == teacher["pipeline"] and len(made["pipeline"]["digest"]) == 32
    assert made["config"] == {"scheduler": DDIM, "steps": 2, "guidance": 3}
    assert made["protocol_digest"] == teacher["protocol_digest"] == PROTOCOL.digest
    capsys.readouterr()
    main(["tables", "own.json", "row.json"])
    assert "| teacher by diffusers | 2 |" in capsys.readouterr().out
    main(own_solver)  # measures the images of the first call, whose latents are not kept
    assert not (own.keys() - compared("own.json").keys()) - {"evaluation/noise_share", "evaluation/noise_share_real"}
    assert compared("own.json") == {key: own[key] for key in compared("own.json")}
    said = record("own/images.json")
    assert said["protocol_digest"] == PROTOCOL.digest and said["images"] == 16 and said["layout"] == "flat"
    assert said["pipeline"] == teacher["pipeline"] and said["config"] == {"steps": 2, "guidance": 3.0}


def test_a_row_on_photographs(lcm, tiny_pipeline, tmp_path, monkeypatch):
    lay_out_protocol("coco2014-30k", tmp_path)
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    random_inception(tmp_path / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    protocol = "configs/protocols/coco2014-30k.yaml"
    main(["evaluate", lcm, "one.json", "--protocol", protocol, "--batch_size", "4", "--save_images", "images"])
    made, said, protocol = record("one.json"), record("images/images.json"), read_protocol(Path(protocol))
    assert made["network_calls"] == 2 and made["metrics"]["evaluation/images"] == IMAGES
    assert said["protocol_digest"] == made["protocol_digest"] == protocol.digest and said["protocol"] == protocol.name
    assert said["pipeline"] == made["pipeline"] and said["config"] == made["config"] and said["images"] == IMAGES
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(protocol.seeds[6])
    call = {"num_inference_steps": 2, "guidance_scale": 1, "output_type": "pt", "generator": generator}
    stock = to_uint8(pipeline(protocol.prompts[6], **call).images[0] * 2 - 1).permute(1, 2, 0).numpy()
    image = np.asarray(Image.open("images/00006.png"))  # as it was generated, not as the protocol resizes it
    assert image.shape == (32, 32, 3) and np.abs(image.astype(int) - stock.astype(int)).max() <= 1


def test_command_line_says_dtype_and_name(command):
    main([*command, "--dtype", "bfloat16", "--name", "half"])
    made = record("one.json")
    assert made["config"]["dtype"] == "bfloat16" and made["name"] == "half"
    changed("lcm.yaml", dtype="bfloat16")
    main(command)  # the images are those of the same run
    assert record("one.json")["config"] == made["config"] and record("one.json")["name"] == "a row"


# ---- folders of images ----


def test_two_processes_make_the_images_of_one(command):
    main(command)
    main([*command[:-1], "two", "--devices", "2"])
    one = contents("images")
    assert contents("two") == one and sorted(one) == [*(f"{i:05d}.png" for i in range(IMAGES)), "images.json"]


def test_the_same_command_resumes(command):
    main(command)
    whole = contents("images")
    interrupt("images", "00003.png", "00006.png")
    Path("images", "00003.png.1.partial").write_bytes(b"of a killed process")
    main(command)
    assert contents("images") == whole


def test_images_that_are_there_are_kept(command):
    main(command)
    assert record("one.json")["metrics"].keys() == {"evaluation/images", "evaluation/seconds_per_image"}
    interrupt("images", "00006.png")
    for name in ("00000.png", "00001.png"):  # a whole batch
        Image.new("RGB", (32, 32), "red").save(f"images/{name}")
    main(command)
    assert Image.open("images/00000.png").getpixel((0, 0)) == (255, 0, 0) and Path("images/00006.png").is_file()
    main(command)  # all are there: nothing is generated
    made = record("one.json")
    assert made["metrics"] == {"evaluation/images": IMAGES} and made["network_calls"] == 2


def test_a_folder_of_another_run_is_refused(command, tmp_path, capsys):
    main(command)
    before = contents("images")
    changed("lcm.yaml", steps=3)
    line = refusal(capsys, command)
    assert "images holds images of another run (config is " in line and '"steps": 2' in line and '"steps": 3' in line
    assert line.endswith("; name another folder, or remove this one to make its images again")
    assert contents("images") == before
    interrupt("images", "00000.png")
    assert "holds images of another run" in refusal(capsys, command)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "full holds other files and no images.json" in refusal(capsys, [*command[:-1], "full"])
    (tmp_path / "file").write_text("mine")
    assert "file: cannot be written (Not a directory)" in refusal(capsys, [*command[:-1], "file"])


def test_images_of_a_benchmark(lcm, tmp_path):
    prompts = [{"tag": "counting", "prompt": f"digit {i}"} for i in range(3)]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    command = ["evaluate", lcm, "one.json", "--prompts", "evaluation_metadata.jsonl", "--layout", "geneval"]
    main([*command, "--save_images", "one", "--batch_size", "5"])
    whole, made = contents("one"), record("one.json")
    assert len([name for name in whole if name.endswith(".png")]) == 12 == len(set(whole.values())) - 4
    assert made["metrics"]["evaluation/images"] == 12 and made["protocol"] == "evaluation_metadata.jsonl"
    assert made["network_calls"] == 2 and record("one/images.json")["layout"] == "geneval"
    interrupt("one", "00001/samples/0002.png")
    main([*command, "--save_images", "one", "--batch_size", "5"])
    assert contents("one") == whole


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2"], "--steps, --guidance: lcm.yaml says them"),
        (["--guidance", "2"], "--steps, --guidance: lcm.yaml says them"),
        (["--prompts", "a.txt"], "--prompts: needs --save_images"),
        (["--prompts", "a.txt", "--save_images", "a", "--protocol", "tiny"], "--prompts: is in place of --protocol"),
        (["--layout", "dpg", "--save_images", "a"], "--layout: dpg needs --save_images and --prompts"),
        (["--layout", "dpg", "--save_images", "a", "--prompts", "none"], "none holds no .txt files"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, lcm, capsys):
    assert message in refusal(capsys, ["evaluate", lcm, "out.json", *options])
    assert not Path("out.json").exists() and not Path("a").exists()


def test_a_mistake_in_a_row_is_one_line(lcm, capsys):
    changed(lcm, stepps=1)
    line = refusal(capsys, ["evaluate", lcm, "out.json"])
    assert line == "diffgan: error: row lcm.yaml: unknown key stepps; did you mean steps?"
    bad = row("bad.yaml", pipeline="glyphs", steps=1, unet="missing.safetensors")
    assert "row bad.yaml: unet: no such file missing.safetensors" in refusal(capsys, ["evaluate", bad, "out.json"])
