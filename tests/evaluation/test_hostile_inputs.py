"""Files of an evaluation that are not what they should be: one clear line each, and nothing is overwritten."""

import io
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diffgan.__main__ import main
from diffgan.cli import coco_captions
from diffgan.errors import UserError
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.evaluation.preprocessing import read_images
from diffgan.evaluation.protocols.coco import read_protocol
from tests.pipelines import random_inception

COLOURS = np.tile(np.array([[[200, 40, 90], [20, 180, 60]]], np.uint8), (16, 8, 1))


def annotations(folder, year, numbers):
    """COCO's annotations of some images."""
    notes = [{"id": 10 * i, "image_id": i, "caption": f"{i} dogs"} for i in numbers]
    (folder / f"captions_val{year}.json").write_text(json.dumps({"info": {"year": year}, "annotations": notes}))
    return folder / f"captions_val{year}.json"


@pytest.fixture
def coco(tmp_path):
    """A folder with val2014, four images, their captions and a protocol of them."""
    (tmp_path / "val2014").mkdir()
    for number in (3, 7, 12, 40):
        Image.fromarray(COLOURS).save(tmp_path / "val2014" / f"COCO_val2014_{number:012}.png")
    coco_captions.write_captions(annotations(tmp_path, 2014, (3, 7, 12, 40)), 4, tmp_path / "captions.jsonl")
    fields = {"name": "coco2014-tiny", "captions": str(tmp_path / "captions.jsonl"), "images": 4, "seed_base": 0}
    fields |= {"side": 16, "reference": str(tmp_path / "val2014"), "reference_images": 4, "year": 2014}
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path


def change(coco, **fields):
    protocol = yaml.safe_load((coco / "protocol.yaml").read_text())
    (coco / "protocol.yaml").write_text(yaml.safe_dump(protocol | fields))
    return read_protocol(coco / "protocol.yaml")


# ---- captions and images of another year ----


def test_captions_of_the_protocols_year_are_accepted(coco):
    protocol = change(coco)
    assert sorted(protocol.prompts) == ["12 dogs", "3 dogs", "40 dogs", "7 dogs"]
    digest = protocol.digest
    assert change(coco, year=None, reference_images=None).digest == digest  # checks are no part of it


def test_captions_of_another_year_are_refused(coco):
    """All of val2017's images are among those of 2014: only the year tells."""
    coco_captions.write_captions(annotations(coco, 2017, (3, 7, 12, 40)), 4, coco / "captions.jsonl")
    reason = r"captions\.jsonl: captions of COCO 2017, but protocol coco2014-tiny is of 2014; draw the captions again"
    with pytest.raises(UserError, match=reason):
        change(coco).digest  # noqa: B018
    assert len(change(coco, year=2017).prompts) == 4


def test_captions_of_other_images_are_refused(coco):
    """Captions without a year, as earlier versions drew them."""
    notes = [{"image_id": number, "caption": "a dog"} for number in (3, 7, 100, 101)]
    (coco / "captions.jsonl").write_text("\n".join(map(json.dumps, notes)))
    with pytest.raises(UserError, match=r"image 100 of a caption is not among the real images .* \(as are 1 others\)"):
        change(coco).digest  # noqa: B018
    (coco / "captions.jsonl").write_text("\n".join(json.dumps({"caption": "a dog"}) for _ in range(4)))
    assert change(coco).prompts == ["a dog"] * 4  # nothing is said, nothing can be checked


def test_too_few_real_images_are_refused(coco):
    (coco / "val2014" / "COCO_val2014_000000000040.png").unlink()
    (coco / "captions.jsonl").write_text("\n".join(["a dog"] * 4))
    (coco / "captions.txt").write_text("\n".join(["a dog"] * 4))
    protocol = change(coco, captions=str(coco / "captions.txt"))
    with pytest.raises(UserError, match="holds 3 images, but protocol coco2014-tiny compares with 4; unpack all"):
        protocol.digest  # noqa: B018


def test_too_few_images_for_a_metric_are_refused(coco):
    (coco / "captions.txt").write_text("a dog\na cat\na cow\n")
    protocol = change(coco, captions=str(coco / "captions.txt"), images=3, metrics=["precision_recall"])
    with pytest.raises(UserError, match="precision and recall need more than 3 images a set, there are 3 and 4"):
        CocoEvaluator(protocol, EfficientNetFeatures()).evaluate(lambda noise, *_: noise[:, :3], (4, 16, 16))


# ---- image files ----


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return folder / name


def test_grey_palette_and_cmyk_images_are_converted(tmp_path):
    rgb = Image.fromarray(COLOURS)
    files = {
        "grey": saved(tmp_path, "grey.png", rgb.convert("L")),
        "binary": saved(tmp_path, "binary.png", rgb.convert("1")),
        "palette": saved(tmp_path, "palette.png", rgb.convert("P", palette=Image.Palette.ADAPTIVE)),
        "opaque": saved(tmp_path, "opaque.png", rgb.convert("RGBA")),
        "cmyk": saved(tmp_path, "cmyk.jpg", rgb.convert("CMYK"), quality=100),
    }
    read = {name: read_images([file], 16)[0].permute(1, 2, 0).numpy() for name, file in files.items()}
    assert np.array_equal(read["opaque"], COLOURS) and np.array_equal(read["palette"], COLOURS)
    grey = (COLOURS @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(read["grey"] - grey[..., None]).max() <= 1
    assert set(np.unique(read["binary"])) == {0, 255}
    assert np.abs(read["cmyk"].astype(int) - COLOURS).mean() < 25  # JPEG blurs the colours of single columns


def test_cmyk_is_not_inverted(tmp_path):
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    file = saved(tmp_path, "cmyk.jpg", Image.fromarray(flat).convert("CMYK"), quality=100)
    assert np.abs(read_images([file], 16)[0].permute(1, 2, 0).numpy().astype(int) - flat).max() <= 3


@pytest.mark.parametrize("kind", ["16 bits", "floats", "transparent", "transparent colour"])
def test_images_that_rgb_cannot_show_are_refused(kind, tmp_path):
    """Pillow would clip 16 bits to white and drop transparency without a word."""
    rgb = Image.fromarray(COLOURS)
    if kind == "16 bits":
        file = saved(tmp_path, "bad.png", Image.fromarray(np.full((8, 8), 40_000, np.uint16)))
    elif kind == "floats":
        file = saved(tmp_path, "bad.tiff", Image.fromarray(np.full((8, 8), 0.5, np.float32)))
    elif kind == "transparent":
        rgb.putalpha(100)
        file = saved(tmp_path, "bad.png", rgb)
    else:
        file = saved(tmp_path, "bad.png", rgb.convert("P"), transparency=0)
    with pytest.raises(UserError, match=r"bad\.\w+: .*its mode is \S+: save it as 8-bit RGB without transparency"):
        read_images([file], 8)


def test_truncated_images_are_named(tmp_path):
    for suffix, options in (("jpg", {"quality": 95}), ("png", {})):
        data = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(data, "JPEG" if suffix == "jpg" else "PNG", **options)
        file = tmp_path / f"short.{suffix}"
        file.write_bytes(data.getvalue()[:-1500])
        with pytest.raises(UserError, match=rf"short\.{suffix}: cannot be read as an image \(.*truncated") as error:
            read_images([file], 8)
        assert "\n" not in str(error.value)


# ---- the command ----


@pytest.fixture
def words(coco, tiny_pipeline, monkeypatch):
    """The command that evaluates a tiny pipeline, and a record of before that it would overwrite."""
    monkeypatch.setenv("TORCH_HOME", str(coco / "torch"))
    (coco / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    random_inception(coco / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    (coco / "out.json").write_text("a record of before")
    return ["evaluate", str(tiny_pipeline), str(coco / "out.json"), "--protocol", str(coco / "protocol.yaml")]


def truncated_jpeg(coco):
    image = next((coco / "val2014").iterdir())
    data = io.BytesIO()
    Image.fromarray(np.tile(COLOURS, (10, 10, 1))).save(data, "JPEG")
    image.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    return rf"{image.name}: cannot be read as an image"


def other_year(coco):
    coco_captions.write_captions(annotations(coco, 2017, (3, 7, 12, 40)), 4, coco / "captions.jsonl")
    return "captions of COCO 2017"


def too_few(coco):
    change(coco, images=5)
    return "4 captions, but protocol coco2014-tiny needs 5"


def statistics_of_another_extractor(coco):
    np.savez(coco / "moments.npz", mu=np.zeros(768), sigma=np.eye(768))
    change(coco, reference=str(coco / "moments.npz"))
    return r"moments.npz: holds the mean of 768 features, but fd_inception_\w+ needs 2048 of inception_\w+"


def weights_of_another_extractor(coco):
    (file,) = (coco / "torch" / "hub" / "checkpoints").iterdir()
    torch.save({"visual.proj": torch.zeros(2, 2)}, file)
    return rf"{file.name}: holds no weights of FID's Inception"


def weights_that_are_not_finite(coco):
    (file,) = (coco / "torch" / "hub" / "checkpoints").iterdir()
    state = torch.load(file, weights_only=True)
    state["Mixed_7c.branch_pool.conv.weight"][0] = float("nan")
    torch.save(state, file)
    return r"features of inception_\w+ are not finite"


@pytest.mark.parametrize(
    "damage",
    [
        *(truncated_jpeg, other_year, too_few, statistics_of_another_extractor, weights_of_another_extractor),
        weights_that_are_not_finite,
    ],
)
def test_each_is_one_line_and_nothing_is_overwritten(damage, words, coco, capsys):
    reason = damage(coco)
    with pytest.raises(SystemExit) as exit:
        main([*words, "--steps", "1"])
    assert exit.value.code not in (0, None)
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("diffgan: ")]
    (line,) = lines
    assert line.startswith("diffgan: error: ") and re.search(reason, line)
    assert (coco / "out.json").read_text() == "a record of before"
