"""What the metrics of a protocol need and this machine lacks, said before anything runs."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from diffgan.errors import UserError
from diffgan.evaluation.features.clip_image import SHA256
from diffgan.evaluation.missing_weights import missing_weights
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.coco_metrics import COCO_METRICS

INCEPTION, DINOV2 = "weights-inception-2015-12-05-6726825d.pth", "dinov2_vitl14_pretrain.pth"
CLIP_IMAGE = f"clip-vit-l-14-336px-{SHA256}.pt"
CLIP = "models--laion--CLIP-ViT-g-14-laion2B-s12B-b42K"
DREAMSIM = [f"{name}_{end}" for name in ("clip_vitb16", "open_clip_vitb16") for end in ("pretrain.pth.tar", "lora")]
DREAMSIM += ["dino_vitb16_pretrain.pth", "dino_vitb16_lora"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any weights, without the package dreamsim and without a network."""

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    return tmp_path


def protocol(folder, **changes):
    fields = {"name": "tiny", "captions": "none", "images": 4, "seed_base": 0, "side": 16, "reference": "none"}
    fields |= {"clip_model": "ViT-g-14", "clip_weights": "laion2b_s12b_b42k", "metrics": list(COCO_METRICS)}
    fields |= {"diversity_prompts": 2, "images_per_prompt": 2}
    (folder / "protocol.yaml").write_text(yaml.safe_dump(fields | changes))
    return read_protocol(folder / "protocol.yaml")


def test_every_missing_file_is_one_line_with_its_metrics(machine):
    checkpoints = machine / "torch" / "hub" / "checkpoints"
    lines = missing_weights(protocol(machine))
    assert all("\n" not in line for line in lines)
    expected = [
        (f"{checkpoints / INCEPTION}: ", "; for fid, kid, precision_recall, fid_t, fid_t_patch, distance_n, diversity"),
        (f"{machine / 'hf' / CLIP}: the weights laion2b_s12b_b42k of CLIP ViT-g-14, ", "; for clip_score"),
        (f"{checkpoints / DINOV2}: the weights of DINOv2 ViT-L/14, ", "; for fd_dinov2"),
        (f"{checkpoints / CLIP_IMAGE}: ", "; for cmmd"),
        ("dreamsim: ", "pip install 'diffgan[dreamsim]'; for dreamsim_n, dreamdiv"),
        (f"{machine / 'torch' / 'hub' / 'dreamsim'}: the weights of DreamSim, ", "; for dreamsim_n, dreamdiv"),
    ]
    for line, (start, end) in zip(lines, expected, strict=True):
        assert line.startswith(start) and line.endswith(end)
    assert not checkpoints.exists() and not (machine / "hf").exists()  # nothing is downloaded


def test_what_is_there_is_not_listed(machine, monkeypatch):
    """Files are looked for and not opened: these are empty."""
    hub, snapshot = machine / "torch" / "hub", machine / "hf" / CLIP / "snapshots" / "0123"
    files = [hub / "checkpoints" / name for name in (INCEPTION, DINOV2, CLIP_IMAGE)]
    files += [hub / "dreamsim" / name for name in DREAMSIM] + [snapshot / "open_clip_pytorch_model.bin"]
    for file in (*files, machine / "hf" / CLIP / "refs" / "main"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0123" if file.name == "main" else "")
    package = ModuleType("dreamsim")
    package.__spec__ = ModuleSpec("dreamsim", None)
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    assert missing_weights(protocol(machine)) == []
    files[-1].rename(snapshot / "open_clip_model.safetensors")
    assert missing_weights(protocol(machine)) == []
    (hub / "dreamsim" / DREAMSIM[0]).unlink()
    (line,) = missing_weights(protocol(machine))
    assert line.startswith(f"{hub / 'dreamsim'}: the weights of DreamSim, ")


def test_weights_of_clip_may_be_a_file(machine):
    clip = {"clip_weights": str(machine / "clip.pt"), "metrics": ["clip_score"]}
    (line,) = missing_weights(protocol(machine, **clip))
    assert line.startswith(f"{machine / 'clip.pt'}: ") and line.endswith("; for clip_score")
    (machine / "clip.pt").write_text("")
    assert missing_weights(protocol(machine, **clip)) == []


@pytest.mark.parametrize("name", ["coco2014-30k", "coco2014-5k", "coco2017-5k", "coco2017-5k-teacher"])
def test_protocols_of_the_package(name, machine):
    """Neither captions nor real images are needed."""
    lines = missing_weights(read_protocol(Path("configs") / "protocols" / f"{name}.yaml"))
    assert len(lines) == {"coco2014-5k": 1, "coco2017-5k-teacher": 4}.get(name, 2)
    assert INCEPTION in lines[0]


# ---- what an evaluation says when they cannot be downloaded ----


def test_missing_weights_of_clip_are_one_line(machine):
    from diffgan.evaluation.features.clip import CLIPSimilarity

    with pytest.raises(UserError) as error:
        CLIPSimilarity("ViT-g-14", "laion2b_s12b_b42k")
    message = str(error.value)
    assert message.startswith("clip_model ViT-g-14, clip_weights laion2b_s12b_b42k: cannot be loaded (")
    assert str(machine / "hf" / CLIP) in message and "laion/CLIP-ViT-g-14-laion2B-s12B-b42K" in message
    assert "clip_weights: FILE" in message and "leave clip_score out" in message and "\n" not in message
    with pytest.raises(UserError, match=r"cannot be loaded .*; name a model of open_clip, and its name of the weights"):
        CLIPSimilarity("ViT-g-14", "no such weights")
