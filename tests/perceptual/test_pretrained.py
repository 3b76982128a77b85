"""The perceptual distances by the name of their weights, and as a loss in someone else's trainer."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from diffgan import ELatentLPIPS, LatentLPIPS
from diffgan.errors import UserError
from diffgan.storage.embedded import embedded

README = Path(__file__).parents[2] / "diffgan" / "perceptual" / "README.md"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    """A folder with one weight file, and another one in a subfolder."""
    for place in (tmp_path / "own", tmp_path / "own" / "vae"):
        place.mkdir()
        shutil.copy(embedded("latent_lpips.safetensors"), place / "weights.safetensors")
    return tmp_path / "own"


@pytest.fixture
def hub(tmp_path, monkeypatch, folder):
    """The hub's cache, of a machine without network, with that folder as the repository someone/latent-lpips."""
    repository = tmp_path / "hub" / "models--someone--latent-lpips"
    shutil.copytree(folder, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_file_a_folder_a_repository_and_the_package_s_own(folder, hub):
    latents = torch.randn(2, 2, 3, 16, 16)
    expected = LatentLPIPS("glyphs")(*latents)
    for name in (folder, str(folder / "weights.safetensors"), "someone/latent-lpips", "glyphs"):
        assert torch.equal(LatentLPIPS.from_pretrained(name)(*latents), expected)
    assert LatentLPIPS.from_pretrained("someone/latent-lpips", revision=REVISION).space.channels == 3


def test_arguments_of_the_class_are_passed_on(folder):
    loss = ELatentLPIPS.from_pretrained(folder, ensemble="b", transforms=2, l1_weight=1.0)
    assert type(loss) is ELatentLPIPS
    assert (loss.ensemble.groups, loss.transforms, loss.l1_weight) == ("b", 2, 1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.safetensors", "nothing.safetensors: no such file or folder; name weights of LatentLPIPS, or"),
        ("./some/folder", "./some/folder: no such file or folder; name weights"),
        ("someone/else", "someone/else: no such file or folder, and someone/else is neither in the hub's cache nor"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(name, message, hub):
    with pytest.raises(UserError) as error:
        ELatentLPIPS.from_pretrained(name)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_revision_that_is_not_there_is_named(hub):
    with pytest.raises(UserError, match="someone/latent-lpips, revision v2, is neither in the hub's cache"):
        ELatentLPIPS.from_pretrained("someone/latent-lpips", revision="v2")


def test_a_folder_without_weights_or_with_several_is_refused(folder, tmp_path):
    shutil.copy(folder / "weights.safetensors", folder / "more.safetensors")
    with pytest.raises(UserError, match=r"found 2 of them: more\.safetensors, weights\.safetensors"):
        LatentLPIPS.from_pretrained(folder)
    with pytest.raises(UserError, match="found none"):
        LatentLPIPS.from_pretrained(tmp_path)


# Largest error of a distance, of which unrelated latents have about 5: as stated in the README.
STATED = {torch.bfloat16: 0.02, torch.float16: 0.002}


@pytest.mark.parametrize("dtype", STATED)
@pytest.mark.parametrize("noise", [1.0, 0.1, 0.001])
def test_autocast_changes_distances_by_less_than_is_stated(dtype, noise):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(16, 3, 16, 16, generator=generator)
    generated = target + noise * torch.randn(16, 3, 16, 16, generator=generator)
    for loss in (LatentLPIPS("glyphs"), ELatentLPIPS("glyphs", "bgcno", l1_weight=1.0)):
        exact = loss(generated, target, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", dtype):
            rough = loss(generated, target, generator=torch.Generator().manual_seed(1))
        assert rough.dtype == torch.float32
        assert (rough - exact).abs().max() < STATED[dtype]


def test_the_gradient_under_autocast_has_the_direction_of_the_exact_one():
    target, start = torch.randn(2, 4, 3, 16, 16)
    gradients = []
    for enabled in (False, True):
        generated, loss = start.clone().requires_grad_(True), ELatentLPIPS("glyphs")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(generated, target, generator=torch.Generator().manual_seed(0)).sum()
        value.backward()
        gradients.append(generated.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_latents_in_half_precision_need_no_autocast():
    latents = torch.randn(2, 4, 3, 16, 16)
    for loss in (LatentLPIPS("glyphs"), ELatentLPIPS("glyphs", "", l1_weight=1.0)):
        rounded = [each.bfloat16() for each in latents]
        assert torch.equal(loss(*rounded), loss(*[each.float() for each in rounded]))
        assert loss.bfloat16()(*rounded).isfinite().all()


def test_the_readme_s_example_trains(capsys):
    section = README.read_text().split("## In another trainer\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 15
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["distance"].isfinite() and names["distance"] > 0
    assert all(weight.grad.abs().sum() > 0 for weight in names["student"].parameters())
