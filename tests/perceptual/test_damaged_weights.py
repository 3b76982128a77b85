"""Weight files of the perceptual distance that come from elsewhere: checked before anything is built, by one line."""

import json
import math
import resource
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffgan.errors import UserError
from diffgan.glyphs.reader import load_reader
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.storage.embedded import embedded
from tests.pair_sets import refusal

DEEP = "[" * 100_000 + "]" * 100_000
CONVOLUTION = "stages.0.0.weight"


@pytest.fixture
def weights(tmp_path):
    network = LatentVGG16(4, width=1 / 16).eval()
    heads = [torch.rand(channels) for channels in network.tap_channels]
    save_weights(tmp_path / "weights.safetensors", PerceptualWeights(network, LatentSpace(4, 4, 1.0), heads))
    return tmp_path / "weights.safetensors"


def rewrite(file, change):
    with safe_open(file, framework="pt") as archive:
        header = archive.metadata()
    tensors = load_file(file)
    change(header, tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, header)


def header(**values):
    return lambda header, tensors: header.update(values)


def space(**values):
    return lambda header, tensors: header.update(latent_space=json.dumps(json.loads(header["latent_space"]) | values))


def tensor(name, change):
    return lambda header, tensors: tensors.update({name: change(tensors[name])})


DAMAGE = [
    (header(width="1e6"), "width is 1e+06 in its header and must be in [0.001, 4]"),
    (header(width="nan"), "width is nan"),
    (header(width="wide"), "its header is none of LatentVGG16"),
    (lambda header, tensors: header.pop("eps"), "its header is none of LatentVGG16 ('eps')"),
    (header(left_out="77"), "left_out is 77"),
    (header(eps="-1"), "eps is -1"),
    (header(norm="layer"), "norm is 'layer'"),
    (header(kind="other"), "is not a LatentVGG16 file of this version"),
    (header(latent_space=DEEP), "JSON nested too deeply"),
    (space(channels=10**9), "channels of latents is 1000000000"),
    (space(scale=0), "scale of latents"),
    (space(more=1), "its header is none of LatentVGG16"),
    (header(width="0.125"), f"tensor {CONVOLUTION} has shape"),
    (
        tensor(CONVOLUTION, lambda weight: weight[:1]),
        f"tensor {CONVOLUTION} has shape (1, 4, 3, 3) and not (4, 4, 3, 3)",
    ),
    (tensor(CONVOLUTION, lambda weight: weight.int()), f"tensor {CONVOLUTION} is int32"),
    (tensor(CONVOLUTION, lambda weight: weight * math.nan), f"{CONVOLUTION} is not finite"),
    (lambda header, tensors: tensors.pop(CONVOLUTION), f"tensor {CONVOLUTION} is missing"),
    (lambda header, tensors: tensors.pop("heads.3"), "tensor heads.3 is missing"),
    (tensor("heads.0", lambda head: head[:1]), "tensor heads.0 has shape"),
    (lambda header, tensors: tensors.update(more=torch.zeros(1)), "tensor more does not belong there"),
]


@pytest.mark.parametrize("change, message", DAMAGE, ids=[message for _, message in DAMAGE])
def test_each_is_refused_by_name(change, message, weights):
    rewrite(weights, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as refused:
        LatentLPIPS(weights)
    line = str(refused.value)
    assert line.startswith(f"{weights}: ") and message in line and "\n" not in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_header_that_claims_to_be_huge_is_not_read(weights):
    weights.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="1099511627776 bytes long, more than 16 MB"):
        LatentLPIPS(weights)


def test_a_damaged_reader_is_refused(tmp_path):
    file = shutil.copy(embedded("reader.safetensors"), tmp_path / "reader.safetensors")
    rewrite(file, tensor("features.0.0.weight", lambda weight: weight[:3]))
    with pytest.raises(UserError, match=r"reader\.safetensors: tensor features\.0\.0\.weight has shape \(3, 1, 5, 5\)"):
        load_reader(file)


@pytest.mark.parametrize("content", ["a text file\n", "", "(" * 5000, "\x80\x02cos\nsystem\n."])
def test_convert_refuses_other_files(content, tmp_path, capsys):
    (tmp_path / "theirs.pth").write_text(content)
    output = tmp_path / "ours.safetensors"
    line = refusal(capsys, ["convert", str(tmp_path / "theirs.pth"), str(output), "sd15"])
    assert f"{tmp_path / 'theirs.pth'}: cannot be read as a checkpoint of tensors" in line and not output.exists()


def test_convert_refuses_heads_of_other_shapes(tmp_path, capsys):
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, 3, 1, 1) for k in range(5)}, tmp_path / "theirs.pth")
    line = refusal(capsys, ["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors"), "sd15"])
    assert "is no elatentlpips checkpoint for sd15 latents" in line
