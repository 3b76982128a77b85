"""Layouts of saved images, read as the tools of the benchmarks read them."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffgan.errors import UserError
from diffgan.evaluation.layouts import Flat, read_layout
from diffgan.evaluation.saved_images import SavedImages
from diffgan.evaluation.work_split import SINGLE_PROCESS

SIDE = 8


def painted(count: int) -> torch.Tensor:
    """Images (count, 3, SIDE, SIDE) uint8, each of one level."""
    return torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE)


def levels(image: Image.Image) -> set[int]:
    return {level for level, most in enumerate(image.convert("L").histogram()) if most}


def save(layout, folder: Path) -> Path:
    saved = SavedImages(folder, layout, {"images": 1}, SINGLE_PROCESS)
    numbers = list(range(len(layout.prompts)))
    saved.write(numbers, painted(len(numbers) * layout.per_prompt))
    saved.finish()
    assert saved.are_complete(numbers)
    return folder


def test_geneval(tmp_path):
    """The loop of its evaluation/evaluate_images.py."""
    lines = [
        {"tag": "colors", "prompt": f"a photo of {i} dogs", "include": [{"class": "dog", "count": i}]} for i in (2, 3)
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    layout = read_layout("geneval", str(tmp_path / "evaluation_metadata.jsonl"))
    assert layout.prompts == ["a photo of 2 dogs", "a photo of 3 dogs"]
    folder, found = save(layout, tmp_path / "images"), {}
    for subfolder in os.listdir(folder):
        if not (folder / subfolder).is_dir() or not subfolder.isdigit():
            continue
        metadata = json.loads((folder / subfolder / "metadata.jsonl").read_text())
        for name in sorted(os.listdir(folder / subfolder / "samples")):
            assert re.match(r"\d+\.png", name)
            found.setdefault(metadata["prompt"], []).append(levels(Image.open(folder / subfolder / "samples" / name)))
        assert metadata == lines[int(subfolder)]
    assert found == {"a photo of 2 dogs": [{1}, {2}, {3}, {4}], "a photo of 3 dogs": [{5}, {6}, {7}, {8}]}


def test_geneval2(tmp_path):
    """A map of prompts to files, as its README asks for."""
    prompts = ["four white bicycles", " three plastic cows"]
    (tmp_path / "geneval2_data.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    folder = save(read_layout("geneval2", str(tmp_path / "geneval2_data.jsonl")), tmp_path / "images")
    paths = json.loads((folder / "image_paths.json").read_text())
    assert {prompt: levels(Image.open(path)) for prompt, path in paths.items()} == {prompts[0]: {1}, prompts[1]: {2}}


def test_dpg(tmp_path):
    """The crops of its compute_dpg_bench.py, whose key is the name of the file."""
    (tmp_path / "prompts").mkdir()
    for name in ("partiprompts12", "COCOval2014000000000042"):
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"the prompt of {name}\n")
    layout = read_layout("dpg", str(tmp_path / "prompts"))
    folder = save(layout, tmp_path / "images")
    for name, first in (("COCOval2014000000000042", 1), ("partiprompts12", 5)):
        image = Image.open(folder / f"{name}.png")
        assert image.size == (2 * SIDE, 2 * SIDE)
        corners = [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)]
        crops = [levels(image.crop((x, y, x + SIDE, y + SIDE))) for x, y in corners]
        assert crops == [{first + i} for i in range(4)]
        assert f"the prompt of {name}" in layout.prompts


def test_seeds_and_digest_follow_the_prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("digit 7\ncapital A\n")
    flat = read_layout("flat", str(tmp_path / "prompts.txt"))
    assert [flat.seeds(0), flat.seeds(1)] == [[3_000_000_000], [3_000_000_001]]
    (tmp_path / "others.txt").write_text("digit 7\ncapital B\n")
    assert flat.digest != read_layout("flat", str(tmp_path / "others.txt")).digest


@pytest.mark.parametrize("layout", ["geneval", "geneval2", "dpg"])
@pytest.mark.parametrize("text", [None, "", '{"prompt": 3}\n', "no json\n"])
def test_prompts_of_another_kind_are_refused(layout, text, tmp_path):
    file = tmp_path / "prompts.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match="--prompts: ") as error:
        read_layout(layout, str(file))
    assert "prompts.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_an_image_of_another_size_is_refused_by_name(tmp_path):
    layout = Flat(["a", "b"])
    saved = SavedImages(tmp_path / "images", layout, {"images": 2}, SINGLE_PROCESS)
    saved.write([0, 1], painted(2))
    Image.new("RGB", (SIDE * 2, SIDE)).save(tmp_path / "images" / "00001.png")
    with pytest.raises(UserError, match=r"00001\.png: has another size than .*00000\.png"):
        saved.read([0, 1])
