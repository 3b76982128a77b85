"""`diffgan evaluate`: on several processes, in other dtypes, and what it refuses."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from diffgan.__main__ import main
from diffgan.evaluation.protocols.glyphs import GLYPH_PROTOCOLS, GlyphProtocol
from tests.cli.test_recipes import lay_out_protocol
from tests.pair_sets import refusal
from tests.pipelines import random_inception
from tests.processes import start_ranks

PROTOCOL = GlyphProtocol("tiny", images=23, diversity_prompts=3, images_per_prompt=3)  # 32: batches of 5, and one of 2
GLYPHS = ["evaluate", "glyphs", "--protocol", "tiny", "--steps", "1", "--guidance", "2", "--batch_size", "5"]


def evaluate_as_rank(rank: int, port: int, folder: Path) -> None:
    """One process of torchrun."""
    GLYPH_PROTOCOLS["tiny"] = PROTOCOL
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()})
    torch.set_num_threads(1)
    main([*GLYPHS, str(folder / "two.json"), "--cache", str(folder / "cache")])


def compared(file: Path) -> dict[str, float]:
    values = json.loads(file.read_text())["metrics"]
    del values["evaluation/seconds_per_image"]
    return values


def test_two_processes_of_torchrun_compute_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setitem(GLYPH_PROTOCOLS, "tiny", PROTOCOL)
    processes = start_ranks(evaluate_as_rank, tmp_path)
    main([*GLYPHS, str(tmp_path / "one.json")])
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = compared(tmp_path / "one.json"), compared(tmp_path / "two.json")
    assert two == one and one["evaluation/images"] == 32  # in the same batches: bit by bit
    assert {"evaluation/noise_share", "evaluation/reading_reconstruction"} <= one.keys()
    assert json.loads((tmp_path / "two.json").read_text())["config"] == {"steps": 1, "guidance": 2.0, "devices": 2}
    assert json.loads((tmp_path / "one.json").read_text())["config"] == {"steps": 1, "guidance": 2.0}


@pytest.fixture
def photographs(tiny_pipeline, tmp_path, monkeypatch):
    """The words that evaluate a tiny pipeline on seven photographs with a random Inception."""
    lay_out_protocol("coco2014-30k", tmp_path)
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    random_inception(tmp_path / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    protocol = "configs/protocols/coco2014-30k.yaml"
    return ["evaluate", str(tiny_pipeline), "--protocol", protocol, "--steps", "2", "--batch_size", "2"]


def test_devices_and_dtypes_on_photographs(photographs, tmp_path, capfd):
    main([*photographs, "one.json"])
    capfd.readouterr()
    main([*photographs, "two.json", "--devices", "2"])
    assert capfd.readouterr().out.count("two.json: images 7") == 1
    one = compared(tmp_path / "one.json")
    assert compared(tmp_path / "two.json") == one and one["evaluation/images"] == 7
    main([*photographs, "half.json", "--dtype", "bfloat16"])
    (distance,) = (key for key in one if key.startswith("evaluation/fd_inception"))
    half = json.loads((tmp_path / "half.json").read_text())
    assert half["config"]["dtype"] == "bfloat16" and "devices" not in half["config"]
    assert half["metrics"][distance] != one[distance]
    assert half["metrics"][distance] == pytest.approx(one[distance], rel=0.1)


def test_a_missing_file_is_one_line_on_two_processes_too(photographs, tmp_path, capfd):
    (tmp_path / "data" / "coco" / "coco2014-30k.jsonl").unlink()
    with pytest.raises(SystemExit) as exit:
        main([*photographs, "two.json", "--devices", "2"])
    assert exit.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("diffgan: error: ") and "coco2014-30k.jsonl" in line
    assert not (tmp_path / "two.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "float16"], "--dtype: float16 requires a GPU; use float32 or bfloat16 on a CPU"),
        (["--devices", "0"], "--devices: 0 must be at least 1"),
        (["--batch_size", "0"], "--batch_size: 0 must be at least 1"),
        (["--device", "cuda:1", "--devices", "2"], "--device: cuda:1 is one device, and --devices is 2"),
        (["--device", "cuda", "--devices", "99"], "--devices: 99, but there are"),
    ],
)
def test_options_that_this_machine_cannot_follow_are_refused(options, message, tmp_path, capsys):
    assert message in refusal(capsys, ["evaluate", "glyphs", str(tmp_path / "out.json"), *options])


def test_a_student_is_compared_with_its_teachers_images(photographs, tmp_path, capfd):
    """The images that the teacher's evaluation saves; the same pipeline has no distance from them."""
    protocol = Path("configs/protocols/coco2014-30k.yaml")
    protocol.write_text(yaml.safe_dump(yaml.safe_load(protocol.read_text()) | {"metrics": ["fid_t", "distance_n"]}))
    main([*photographs, "teacher.json", "--save_images", "teacher"])
    assert "fid_t, distance_n not computed without teacher_images" in capfd.readouterr().err
    main([*photographs, "same.json", "--teacher_images", "teacher"])
    main([*photographs, "other.json", "--teacher_images", "teacher", "--guidance", "9"])
    for name in ("fd_t", "distance_n"):
        (key,) = (key for key in compared(tmp_path / "same.json") if key.startswith(f"evaluation/{name}_inception"))
        assert key not in compared(tmp_path / "teacher.json")
        same, other = (compared(tmp_path / f"{which}.json")[key] for which in ("same", "other"))
        assert 0 <= same < 1e-6 * other  # features of a random Inception hardly differ
    teacher, same = (json.loads((tmp_path / f"{which}.json").read_text()) for which in ("teacher", "same"))
    assert same["teacher_images"] == {"pipeline": teacher["pipeline"], "config": teacher["config"]}
    assert "teacher_images" not in teacher
    main(["tables", "teacher.json", "same.json"])
    (tmp_path / "same.json").write_text("a record of before")
    protocol.write_text(yaml.safe_dump(yaml.safe_load(protocol.read_text()) | {"seed_base": 5}))
    with pytest.raises(SystemExit) as exit:
        main([*photographs, "same.json", "--teacher_images", "teacher"])
    assert exit.value.code == 1 and (tmp_path / "same.json").read_text() == "a record of before"
    assert "teacher: holds images of protocol coco2014-30k (" in capfd.readouterr().err
