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


@pytest.fixture
def glyphs(tmp_path, monkeypatch):
    """The word that names a row: two steps of the glyph teacher, called by diffusers."""
    monkeypatch.setitem(GLYPH_PROTOCOLS, "tiny", PROTOCOL)
    monkeypatch.chdir(tmp_path)
    return row("glyphs.yaml", pipeline="glyphs", scheduler=DDIM, steps=2, guidance=3, name="teacher by diffusers")


@pytest.fixture
def photographs(tiny_pipeline, tmp_path, monkeypatch):
    """The words that evaluate a row on seven photographs: a tiny pipeline whose scheduler adds noise at its steps."""
    lay_out_protocol("coco2014-30k", tmp_path)
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    random_inception(tmp_path / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    row("lcm.yaml", pipeline=str(tiny_pipeline), scheduler={"class": "LCMScheduler"}, steps=2, guidance=1)
    return ["evaluate", "lcm.yaml", "--protocol", "configs/protocols/coco2014-30k.yaml", "--batch_size", "2"]


def row(name, **values) -> str:
    Path(name).write_text(yaml.safe_dump({"name": "a row", "guidance": 0} | values))
    return name


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
    main(["evaluate", "glyphs", "own.json", *GLYPHS, "--steps", "2", "--guidance", "3", "--name", "teacher"])
    by_diffusers, own = compared("row.json"), compared("own.json")
    assert by_diffusers == pytest.approx(own, rel=2e-3, abs=1e-3)
    assert by_diffusers.keys() == own.keys() and "evaluation/noise_share" in own
    made, teacher = record("row.json"), record("own.json")
    assert made["name"] == "teacher by diffusers" and made["network_calls"] == 2
    assert made["pipeline"] == {"name": "glyphs", "digest": teacher["pipeline"]["digest"]}
    assert made["config"] == {"scheduler": DDIM, "steps": 2, "guidance": 3}
    assert made["protocol_digest"] == teacher["protocol_digest"] == PROTOCOL.digest
    capsys.readouterr()
    main(["tables", "own.json", "row.json"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| teacher by diffusers | 2 |") for line in lines)


def test_a_row_on_two_processes_and_its_folder_of_images(photographs, tiny_pipeline, tmp_path):
    main([*photographs, "one.json", "--save_images", "one"])
    main([*photographs, "two.json", "--save_images", "two", "--devices", "2"])
    one, two = contents("one"), contents("two")
    assert two == one and sorted(one) == [*(f"{i:05d}.png" for i in range(7)), "images.json"]
    assert compared("two.json") == compared("one.json")
    assert record("one.json")["network_calls"] == 2 and record("one.json")["config"]["scheduler"]
    said, protocol = record("one/images.json"), read_protocol(Path(photographs[3]))
    assert said["protocol_digest"] == protocol.digest == record("one.json")["protocol_digest"]
    assert said["protocol"] == protocol.name and said["images"] == 7 and said["layout"] == "flat"
    assert said["pipeline"] == record("one.json")["pipeline"] and said["config"] == record("one.json")["config"]
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(protocol.seeds[6])
    call = {"num_inference_steps": 2, "guidance_scale": 1, "output_type": "pt", "generator": generator}
    stock = to_uint8(pipeline(protocol.prompts[6], **call).images[0] * 2 - 1).permute(1, 2, 0).numpy()
    image = np.asarray(Image.open("one/00006.png"))
    assert image.shape == (32, 32, 3) and np.abs(image.astype(int) - stock.astype(int)).max() <= 1


def test_command_line_says_dtype_and_name(photographs):
    main([*photographs, "half.json", "--dtype", "bfloat16", "--name", "half"])
    made = record("half.json")
    assert made["config"]["dtype"] == "bfloat16" and made["name"] == "half"
    row("lcm.yaml", **(yaml.safe_load(Path("lcm.yaml").read_text()) | {"dtype": "bfloat16"}))
    main([*photographs, "own.json"])
    assert record("own.json")["config"] == made["config"] and compared("own.json") == compared("half.json")


# ---- resuming ----


def test_the_same_command_resumes(photographs):
    main([*photographs, "one.json", "--save_images", "images"])
    whole = contents("images")
    interrupt("images", "00003.png", "00006.png")
    main([*photographs, "two.json", "--save_images", "images"])
    assert contents("images") == whole and compared("two.json") == compared("one.json")


def test_images_that_are_there_are_kept(photographs):
    """In whole batches: those of images 0 and 1 are replaced here, and measured as they are."""
    main([*photographs, "one.json", "--save_images", "images"])
    interrupt("images", "00006.png")
    for name in ("00000.png", "00001.png"):
        Image.new("RGB", (32, 32), "red").save(f"images/{name}")
    main([*photographs, "two.json", "--save_images", "images"])
    assert Image.open("images/00000.png").getpixel((0, 0)) == (255, 0, 0) and Path("images/00006.png").is_file()
    assert compared("two.json") != compared("one.json")
    main([*photographs, "three.json", "--save_images", "images"])  # all are there: nothing is generated
    assert compared("three.json") == compared("two.json")
    assert "evaluation/seconds_per_image" not in record("three.json")["metrics"]
    assert record("three.json")["network_calls"] == 2


def test_our_own_solver_saves_images_too(glyphs):
    command = ["evaluate", "glyphs", "--steps", "1", "--guidance", "1", *GLYPHS, "--save_images", "images"]
    main([*command, "one.json"])
    main([*command, "two.json"])
    one, two = compared("one.json"), compared("two.json")
    assert one.pop("evaluation/noise_share") and one.pop("evaluation/noise_share_real")
    assert two == one  # its latents are not kept, so without the share of the noise in them
    assert record("images/images.json")["config"] == {"steps": 1, "guidance": 1.0}


# ---- refusals ----


def test_a_folder_of_another_run_is_refused(photographs, tmp_path, capsys):
    command = [*photographs, "one.json", "--save_images", "images"]
    main(command)
    before = contents("images")
    row("lcm.yaml", **(yaml.safe_load(Path("lcm.yaml").read_text()) | {"steps": 3}))
    line = refusal(capsys, command)
    assert "images holds images of another run (config is " in line and '"steps": 2' in line and '"steps": 3' in line
    assert contents("images") == before
    interrupt("images", "00000.png")
    assert "holds images of another run" in refusal(capsys, command)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "full holds other files and no images.json" in refusal(capsys, [*command[:-1], "full"])
    (tmp_path / "file").write_text("mine")
    assert "file is a file; name a folder" in refusal(capsys, [*command[:-1], "file"])


def test_a_damaged_image_is_one_line(photographs, capsys):
    command = [*photographs, "one.json", "--save_images", "images"]
    main(command)
    Path("images/00003.png").write_bytes(Path("images/00003.png").read_bytes()[:60])
    assert "images/00003.png: is damaged" in refusal(capsys, command)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "2"], "--steps, --guidance: glyphs.yaml says them"),
        (["--guidance", "2"], "--steps, --guidance: glyphs.yaml says them"),
        (["--prompts", "a.txt"], "--prompts: needs --save_images"),
        (["--prompts", "a.txt", "--save_images", "a", "--protocol", "tiny"], "--prompts: is in place of --protocol"),
        (["--layout", "dpg", "--save_images", "a"], "--layout: dpg needs --save_images and --prompts"),
        (["--layout", "dpg", "--save_images", "a", "--prompts", "none"], "none holds no .txt files"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, glyphs, capsys):
    assert message in refusal(capsys, ["evaluate", glyphs, "out.json", *options])
    assert not Path("out.json").exists() and not Path("a").exists()


def test_a_mistake_in_a_row_is_one_line(glyphs, capsys):
    assert refusal(capsys, ["evaluate", row("bad.yaml", pipeline="glyphs", stepps=1), "out.json"]) == (
        "diffgan: error: row bad.yaml: unknown key stepps; did you mean steps?"
    )
    bad = row("bad.yaml", pipeline="glyphs", steps=1, unet="missing.safetensors")
    assert "row bad.yaml: unet: no such file missing.safetensors" in refusal(capsys, ["evaluate", bad, "out.json"])


# ---- prompts of a benchmark ----


def test_images_of_a_benchmark_without_metrics(photographs, tmp_path):
    prompts = [{"tag": "counting", "prompt": f"digit {i}"} for i in range(3)]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    command = ["evaluate", "lcm.yaml", "--prompts", "evaluation_metadata.jsonl", "--layout", "geneval"]
    main([*command, "one.json", "--save_images", "one", "--batch_size", "5"])
    main([*command, "two.json", "--save_images", "two", "--devices", "2", "--batch_size", "5"])
    whole = contents("one")
    assert contents("two") == whole and len([name for name in whole if name.endswith(".png")]) == 12
    made = record("one.json")
    assert made["metrics"].keys() == {"evaluation/images", "evaluation/seconds_per_image"}
    assert made["metrics"]["evaluation/images"] == 12 and made["protocol"] == "evaluation_metadata.jsonl"
    assert made["network_calls"] == 2 and record("one/images.json")["layout"] == "geneval"
    interrupt("one", "00001/samples/0002.png")
    main([*command, "one.json", "--save_images", "one", "--batch_size", "5"])
    assert contents("one") == whole
