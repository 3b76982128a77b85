"""The extractors of DINOv2, CLIP and DreamSim with small random weights, against other implementations."""

import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
from transformers import Dinov2Config, Dinov2Model

from diffgan.errors import UserError
from diffgan.evaluation.features import clip_image, dinov2
from diffgan.evaluation.features.clip_image import CLIPImageFeatures
from diffgan.evaluation.features.dinov2 import DINOv2Features, interpolated_positions
from diffgan.evaluation.features.dreamsim import DreamSimFeatures
from diffgan.evaluation.features.inception import InceptionFeatures
from diffgan.evaluation.features.registry import Extractors, load_extractor

SMALL = "vit_small_patch14_dinov2"
PARTS = {"attn.proj": "attention.o_proj", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# ---- DINOv2 ----


@pytest.fixture(scope="module")
def small_dinov2(tmp_path_factory):
    """Random weights of DINOv2 ViT-S/14 for 224 pixels, and their file as it is published: with a mask token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(SMALL, pretrained=False, num_classes=0, img_size=224)
        state = {name: value + 0.05 * torch.randn_like(value) for name, value in network.state_dict().items()}
    file = tmp_path_factory.mktemp("dinov2") / "small.pth"
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, file)
    return state, file


def in_transformers(state):
    """The weights under the names of transformers, which splits queries, keys and values."""
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for name, value in state.items():
        if not name.startswith("blocks."):
            continue
        _, number, part = name.split(".", 2)
        layer = f"encoder.layer.{number}"
        if part.startswith("attn.qkv"):
            for kind, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.attention.{kind}_proj.{part.rsplit('.', 1)[1]}"] = third
            continue
        for old, new in PARTS.items():
            part = part.replace(old, new)
        renamed[f"{layer}.{part}"] = value
    return renamed


def test_dinov2_is_that_of_transformers(small_dinov2, images):
    state, file = small_dinov2
    extractor = DINOv2Features(file, SMALL)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=224,
        patch_size=14,
        use_mask_token=False,
    )
    other = Dinov2Model(config).eval()
    other.load_state_dict(in_transformers(state))
    pixels = clip_image.resized_bytes(images, 224).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = other((pixels - mean) / deviation).last_hidden_state[:, 0]
    assert extractor(images).shape == (2, 384)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-4)
    assert extractor.name.startswith("dinov2_")  # these are not the published weights


def test_positions_are_interpolated_as_dinov2_does():
    """Bicubic with a = -0.75 at (i + 1/2) / scale - 1/2, where scale = (patches + 0.1) / side; borders are repeated."""
    positions = torch.randn(1, 1 + 9 * 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    side, patches = 9, 5
    weights = np.zeros((patches, side))
    for i in range(patches):
        place = (i + 0.5) * side / (patches + 0.1) - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            t = abs(place - j)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[i, min(max(j, 0), side - 1)] += near if t <= 1 else far
    grid = positions[0, 1:].view(side, side, 2).numpy()
    expected = np.einsum("ia,jb,abd->ijd", weights, weights, grid).reshape(-1, 2)
    resized = interpolated_positions(positions, patches)
    assert torch.equal(resized[:, 0], positions[:, 0])
    np.testing.assert_allclose(resized[0, 1:].numpy(), expected, atol=1e-6)
    assert interpolated_positions(positions, side) is positions


def test_dinov2_takes_weights_of_images_of_518_pixels(small_dinov2, tmp_path):
    state, _ = small_dinov2
    positions = torch.randn(1, 1 + 37 * 37, 384)
    torch.save(state | {"pos_embed": positions}, tmp_path / "518.pth")
    network = DINOv2Features(tmp_path / "518.pth", SMALL).network
    torch.testing.assert_close(network.pos_embed, interpolated_positions(positions, 16))


# ---- CLIP ----


def test_clip_is_that_of_open_clip(tmp_path, images):
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-openai.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-openai.json")
    network = open_clip.create_model("tiny-openai").half().float().eval()  # OpenAI's weights have 16 bits
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    extractor = CLIPImageFeatures(tmp_path / "tiny.pt")
    pixels = clip_image.resized_bytes(images, 32).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (clip_image.MEAN, clip_image.DEVIATION))
    with torch.no_grad():
        expected = network.encode_image((pixels - mean) / deviation)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert extractor.name.startswith("clip_") and extractor.side == 32


# ---- DreamSim ----


def test_dreamsim_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match=r"pip install 'diffgan\[dreamsim\]', or list distance_n") as error:
        load_extractor("dreamsim")
    assert "\n" not in str(error.value)


def test_dreamsim_embeds_images_in_0_to_1(tmp_path, images, monkeypatch):
    """The interface of the package `dreamsim`, by a stand-in: its weights are not on this machine."""
    package = ModuleType("dreamsim")
    seen = {}

    class Network(torch.nn.Module):
        extractor_list = [SimpleNamespace(model=torch.nn.Linear(1, 1))]  # noqa: RUF012

        def embed(self, pixels):
            seen["pixels"] = pixels
            return pixels.mean((2, 3)).squeeze()  # the package drops the dimension of a single image

    def dreamsim(pretrained, device, cache_dir):
        seen["folder"] = cache_dir
        return Network(), None

    package.dreamsim = dreamsim
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    extractor = DreamSimFeatures(tmp_path / "weights").to("cpu")
    assert extractor(images).shape == (2, 3) and extractor(images[:1]).shape == (1, 3)
    assert seen["pixels"].shape[1:] == (3, 224, 224) and 0 <= seen["pixels"].min() <= seen["pixels"].max() <= 1
    assert seen["folder"] == str(tmp_path / "weights") and (tmp_path / "weights").is_dir()


# ---- weights that are missing or of another network ----


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty folder of torch hub, and no network."""

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("inception", "weights-inception-2015-12-05-6726825d.pth"),
        ("dinov2", "dinov2_vitl14_pretrain.pth"),
        ("clip", f"clip-vit-l-14-336px-{clip_image.SHA256}.pt"),
    ],
)
def test_missing_weights_are_one_line(name, file, offline, tmp_path):
    with pytest.raises(UserError) as error:
        load_extractor(name)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'hub' / 'checkpoints' / file}: the weights of ")
    assert "cannot be downloaded (" in message and "fetch https://" in message and "put it there" in message
    assert message.endswith("or leave the metrics that need them out of the protocol's `metrics`")
    assert "\n" not in message


def test_weights_of_another_extractor_are_refused(small_dinov2, tmp_path):
    shutil.copy(small_dinov2[1], tmp_path / "dinov2.pth")
    torch.save({"Mixed_7c.branch_pool.conv.weight": torch.zeros(2, 2)}, tmp_path / "inception.pth")
    torch.save({"weights": pytest.approx(1)}, tmp_path / "objects.pth")
    for build, files in (
        (InceptionFeatures, ("dinov2", "objects")),
        (lambda file: DINOv2Features(file, SMALL), ("inception", "objects")),
        (CLIPImageFeatures, ("inception", "dinov2", "objects")),
    ):
        for name in files:
            with pytest.raises(UserError, match=rf"{name}\.pth: holds no weights of ") as error:
                build(tmp_path / f"{name}.pth")
            assert "\n" not in str(error.value)


def test_weights_at_the_usual_place_have_the_extractors_name(small_dinov2, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda _, create=timm.create_model, **options: create(SMALL, **options))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(small_dinov2[1], dinov2.WEIGHTS.path)
    extractors = Extractors("dinov2")
    assert extractors[None].name == "dinov2" and extractors["dinov2"] is extractors[None]
    with pytest.raises(UserError, match="extractor 'vgg' is none of inception, efficientnet, dinov2, clip, dreamsim"):
        extractors["vgg"]
