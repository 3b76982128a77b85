"""Image files that are broken: every reader of images names them in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.image_folder import LabelledImages
from datamodules.two_afc import BAPPSDataset
from diffgan.errors import UserError
from diffgan.images import MAX_PIXELS, read_rgb
from tests.pair_sets import refusal


def png(file, size=(8, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)).save(file, "PNG")
    return file


def truncated(file):
    file.write_bytes(file.read_bytes()[:50])


def corrupted(file):
    data = bytearray(file.read_bytes())
    data[8:16] = b"\xff" * 8  # length and name of the first chunk
    file.write_bytes(data)


def text(file):
    file.write_text("no image")


def empty(file):
    file.write_bytes(b"")


def huge(file):
    """A header of 9,000 x 9,000 pixels with next to no data."""
    file.write_bytes(b"P4 9000 9000\n\x00")


DAMAGE = [truncated, corrupted, text, empty, huge]


@pytest.fixture(params=DAMAGE, ids=[damage.__name__ for damage in DAMAGE])
def damage(request):
    return request.param


def test_read_rgb_names_the_file(damage, tmp_path):
    damage(png(tmp_path / "image.png"))
    with pytest.raises(UserError, match=r"image\.png: cannot be read as an image \(.+\); replace or remove it"):
        read_rgb(tmp_path / "image.png")


def test_the_largest_size_is_stated(tmp_path):
    huge(tmp_path / "image.png")
    with pytest.raises(UserError, match=f"9000 x 9000 pixels are more than {MAX_PIXELS}"):
        read_rgb(tmp_path / "image.png")


def test_reconstruct_names_the_file(damage, tmp_path, capsys):
    png(tmp_path / "images" / "a.png")
    damage(png(tmp_path / "images" / "b.png"))
    line = refusal(capsys, ["reconstruct", str(tmp_path / "out"), "--images", str(tmp_path / "images")])
    assert f"{tmp_path}/images/b.png: cannot be read as an image" in line and not (tmp_path / "out").exists()


def test_a_folder_of_classes_names_the_file(damage, tmp_path):
    damage(png(tmp_path / "train" / "class" / "a.png"))
    with pytest.raises(UserError, match=r"class/a\.png: cannot be read as an image"):
        LabelledImages(tmp_path / "train", torch.nn.Identity())[0]


@pytest.fixture
def triplets(tmp_path):
    folder = tmp_path / "val" / "cnn"
    for subfolder in ("ref", "p0", "p1"):
        png(folder / subfolder / "000.png")
    (folder / "judge").mkdir()
    np.save(folder / "judge" / "000.npy", np.array([0.5]))
    return folder


def read_triplets(folder):
    return BAPPSDataset([folder], None).__getitems__([0])


def test_2afc_names_the_image(damage, triplets):
    assert read_triplets(triplets).preference.tolist() == [0.5]
    damage(triplets / "p1" / "000.png")
    with pytest.raises(UserError, match=r"p1/000\.png: cannot be read as an image"):
        read_triplets(triplets)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00\xff\xff", b"x" * 10_000])
def test_2afc_names_a_broken_preference(content, triplets):
    (triplets / "judge" / "000.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"judge/000\.npy: cannot be read as one number between 0 and 1"):
        read_triplets(triplets)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1, [0.1, 0.2], "a"])
def test_2afc_refuses_a_preference_that_is_no_share(value, triplets):
    np.save(triplets / "judge" / "000.npy", np.array(value))
    with pytest.raises(UserError, match=r"000\.npy"):
        read_triplets(triplets)
