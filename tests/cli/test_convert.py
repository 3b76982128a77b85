"""Conversion of the authors' weights: distances equal those of a transcription of their network and formula."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg16_bn

from diffgan import LatentLPIPS
from diffgan.__main__ import main

SLICE_ENDS = (6, 13, 23, 33, 43)  # torchvision's layer numbers at which the five slices end


class Reference(nn.Module):
    """A plain transcription of the package's published layout and formula, with seeded weights."""

    def __init__(self, channels):
        super().__init__()
        features = vgg16_bn(weights=None).features
        features[0] = nn.Conv2d(channels, 64, 3, padding=1)
        for number in (6, 13, 23):
            features[number] = nn.Identity()
        self.slices = [features[a:b] for a, b in zip((0, 7, 14, 24, 34), (7, 14, 24, 34, 44), strict=True)]
        self.features = features
        self.heads = [torch.rand(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]
        for module in features.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 2)
        self.double().eval()

    def checkpoint(self):
        """The tensors of the package's file."""
        tensors = {f"lin{k}.model.1.weight": head for k, head in enumerate(self.heads)}
        for name, value in self.features.state_dict().items():
            number, kind = name.split(".")
            piece = next(k for k, end in enumerate(SLICE_ENDS, 1) if int(number) <= end)
            tensors[f"net.slice{piece}.{number}.{kind}"] = value.float()
        return tensors | {name.replace("lin", "lins.", 1): tensors[name] for name in list(tensors) if "lin" in name}

    def forward(self, x, y):
        distance = 0
        for piece, head in zip(self.slices, self.heads, strict=True):
            x, y = piece(x), piece(y)
            u, v = (f / (f.square().sum(1, keepdim=True) + 1e-8).sqrt() for f in (x, y))
            distance = distance + (head.double() * (u - v).square()).sum(1, keepdim=True).mean((2, 3))
        return distance.flatten()


@pytest.mark.parametrize(("latents", "channels"), [("sd15", 4), ("flux", 16)])
def test_converted_weights_give_the_same_distances(latents, channels, tmp_path):
    torch.manual_seed(0)
    reference = Reference(channels)
    torch.save(reference.checkpoint(), tmp_path / "theirs.pth")
    main(["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors"), latents])
    distance = LatentLPIPS(tmp_path / "ours.safetensors")
    assert distance.space.channels == channels
    distance.double()
    x, y = torch.randn(2, 2, channels, 16, 16, dtype=torch.float64)
    x.requires_grad_(True)
    x64 = x.detach().clone().requires_grad_(True)
    ours, theirs = distance(x, y), reference(x64, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x64)
    assert (a - b).norm() < 1e-3 * b.norm()  # a value within rounding of a ReLU's corner may fall on its other side


def test_wrong_files_fail_with_one_line(tmp_path, capsys):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"x": Malicious()}, tmp_path / "malicious.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "truncated.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "existing.safetensors").write_text("content")
    cases = [
        (name, "out.safetensors", "sd15", name)
        for name in ("malicious.pth", "other.pth", "truncated.pth", "missing.pth")
    ]
    cases += [("other.pth", "existing.safetensors", "sd15", "exists"), ("other.pth", "out.safetensors", "sd9", "sd9")]
    for source, output, latents, named in cases:
        with pytest.raises(SystemExit):
            main(["convert", str(tmp_path / source), str(tmp_path / output), latents])
        error = capsys.readouterr().err
        assert named in error and "Traceback" not in error
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out.safetensors").exists()
    assert (tmp_path / "existing.safetensors").read_text() == "content"


def test_a_checkpoint_for_other_channels_is_refused(tmp_path, capsys):
    torch.save(Reference(16).checkpoint(), tmp_path / "flux.pth")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "flux.pth"), str(tmp_path / "out.safetensors"), "sd15"])
    assert "no elatentlpips checkpoint for sd15" in capsys.readouterr().err
