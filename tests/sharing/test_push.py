"""Pushing to a hub on this machine: what arrives, what the cards say, and what is refused."""

import json
import shutil
import socket

import huggingface_hub.constants
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffgan import ELatentLPIPS
from diffgan.__main__ import main
from diffgan.noise import draw_noise
from diffgan.pairs.pair_set import PairSet
from diffgan.perceptual.weights import KIND
from diffgan.storage.embedded import embedded
from tests.pair_sets import contents
from tests.runs import distillation, refused, write
from tests.sharing.hub import INITIAL, TOKEN, running_hub


@pytest.fixture(scope="module")
def student(tiny_pipeline, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = distillation(tiny_pipeline, pairs, folder)
    config["model"]["init_args"]["images"] = 16
    main(["fit", "-c", write(folder / "fit.yaml", config)])
    main(["export", str(folder / "run"), str(folder / "student")])
    return folder / "student"


@pytest.fixture
def weights():
    return embedded("latent_lpips.safetensors")


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """A token, files by LFS, and no login of the machine."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def download(hub, name, folder):
    """A repository as a folder."""
    for path, content in hub.repositories[name].items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def head_of(card):
    """The YAML at the beginning of a card."""
    return yaml.safe_load(card.split("---\n")[1])


def line_of(capsys, *words):
    """The one line of a refused push, after progress bars."""
    error = refused(capsys, "push", *words)
    assert TOKEN not in error
    lines = [line for line in error.splitlines() if "diffgan: error" in line]
    assert len(lines) == 1
    return lines[0]


def test_student_arrives_whole_and_opens_in_diffusers(student, hub, tmp_path, capsys):
    main(["push", str(student), "me/letters", "--license", "apache-2.0"])
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"{hub.url}/me/letters" and TOKEN not in output.out + output.err
    arrived = download(hub, "models/me/letters", tmp_path / "arrived")
    assert contents(arrived).keys() == contents(student).keys() | {"README.md", ".gitattributes"}
    assert not hub.private
    noise = draw_noise([0], (4, 8, 8))
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": noise, "output_type": "pt"}
    images = [DiffusionPipeline.from_pretrained(folder)("digit 7", **options).images for folder in (student, arrived)]
    assert torch.equal(*images)


def test_student_s_card_says_what_the_records_say(student, hub):
    record = json.loads((student / "diffgan.json").read_text())
    main(["push", str(student), "me/letters", "--private"])
    card = hub.repositories["models/me/letters"]["README.md"].decode()
    assert hub.private == {"models/me/letters"}
    assert head_of(card) == {
        **{"license": "other", "library_name": "diffusers", "pipeline_tag": "text-to-image"},
        "tags": ["diffgan", "one-step"],
    }
    assert (
        'DiffusionPipeline.from_pretrained("me/letters")' in card and "num_inference_steps=1, guidance_scale=1" in card
    )
    for row in (
        "| teacher | tiny |",
        "| pairs | 40, by 2 steps of the teacher, guidance 2.0 |",
        "| regression loss | PseudoHuber |",
        "| images seen | 16 |",
        f"| checkpoint | {record['checkpoint']} |",
        "![samples](samples.png)",
        "This checkpoint has no record of an evaluation.",
    ):
        assert row in card


def test_card_has_metrics_with_their_protocol_and_the_dtype(student, tmp_path, capsys):
    copy = shutil.copytree(student, tmp_path / "student")
    record = json.loads((copy / "diffgan.json").read_text())
    record["teacher"]["name"] = "someone/model"
    record |= {"dtype": "float16", "difference_to_float32": {"largest": 0.00123}}
    metrics = {"evaluation/fid": 9.25, "evaluation/images": 5000.0}
    record["evaluation"] = {"protocol": "coco2017-5k", "protocol_digest": "ab12", "images_seen": 16, "metrics": metrics}
    (copy / "diffgan.json").write_text(json.dumps(record))
    main(["push", str(copy), "me/letters", "--dry_run"])
    card = capsys.readouterr().out
    assert head_of(card)["base_model"] == "someone/model"
    assert "Protocol coco2017-5k (digest ab12)." in card and "| fid | 9.25 |" in card and "| images | 5000 |" in card
    assert "torch_dtype=torch.float16" in card and "| largest difference of x^ to float32 | 0.00123 |" in card


@pytest.mark.parametrize(
    "change, line",
    [
        ({"teacher": 5}, "teacher is damaged"),
        ({"method": "x"}, "method is damaged"),
        ({"pairs": {"pairs": 3}}, "pairs is damaged"),
        ({"evaluation": {"metrics": {}}}, "evaluation is damaged"),
        ({"difference_to_float32": 3}, "difference_to_float32 is damaged"),
        ({"dtype": "int8"}, "dtype is 'int8' and must be one of float32"),
        ({"size": 5}, "size: 5 must be two positive integers"),
    ],
)
def test_an_edited_record_is_one_line(student, tmp_path, capsys, change, line):
    copy = shutil.copytree(student, tmp_path / "student")
    record = json.loads((copy / "diffgan.json").read_text())
    (copy / "diffgan.json").write_text(json.dumps(record | change))
    assert line in line_of(capsys, str(copy), "me/letters", "--dry_run")


def test_card_states_the_size_of_images(student, tmp_path, capsys):
    copy = shutil.copytree(student, tmp_path / "student")
    record = json.loads((copy / "diffgan.json").read_text())
    (copy / "diffgan.json").write_text(json.dumps(record | {"size": [32, 48]}))
    main(["push", str(copy), "me/letters", "--dry_run"])
    assert "guidance_scale=1, height=32, width=48).images" in capsys.readouterr().out


def test_perceptual_weights_that_cannot_be_used_are_refused(weights, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    save_file(load_file(weights), file, {"kind": KIND})
    assert "its header is none of LatentVGG16" in line_of(capsys, str(file), "me/weights", "--dry_run")


def test_no_path_of_this_machine_arrives(student, pairs, hub, tmp_path):
    """An export of an earlier version had them in its configurations, a manifest has them still."""
    copy = shutil.copytree(student, tmp_path / "student")
    config = json.loads((copy / "unet" / "config.json").read_text()) | {"_name_or_path": "/home/someone/teacher"}
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    main(["push", str(copy), "me/letters"])
    main(["push", str(pairs), "me/pairs"])
    for files in hub.repositories.values():
        for name, content in files.items():
            assert b"/home/" not in content and str(tmp_path.parent).encode() not in content, name


def test_files_that_diffgan_did_not_write_stay_here(student, tmp_path, capsys):
    copy = shutil.copytree(student, tmp_path / "student")
    for name in (".env", "notes.txt", "unet/.cache.bin", "private/key.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("secret")
    main(["push", str(copy), "me/letters", "--dry_run"])
    output = capsys.readouterr().out
    assert "unet/diffusion_pytorch_model.safetensors" in output
    assert not any(name in output for name in (".env", "notes.txt", ".cache", "key.json"))


def test_pair_set_arrives_as_a_data_set(pairs, hub, tmp_path):
    main(["push", str(pairs), "me/pairs"])
    arrived = download(hub, "datasets/me/pairs", tmp_path / "arrived")
    first, second = (PairSet(folder).read(range(40)) for folder in (pairs, arrived))
    assert torch.equal(first.latent, second.latent) and first.prompt == second.prompt
    card = (arrived / "README.md").read_text()
    assert head_of(card)["task_categories"] == ["text-to-image"] and "| pairs | 40 |" in card


def test_perceptual_weights_arrive(weights, hub, tmp_path):
    main(["push", str(weights), "me/distance"])
    arrived = download(hub, "models/me/distance", tmp_path / "arrived")
    latent = torch.randn(2, 3, 16, 16)
    assert ELatentLPIPS(arrived / weights.name)(latent, latent).tolist() == [0, 0]
    assert 'ELatentLPIPS("latent_lpips.safetensors")' in (arrived / "README.md").read_text()


def test_dry_run_needs_no_hub_and_no_token(student, weights, pairs, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a dry run reached for the network"))
    for path, file in ((student, "unet/config.json"), (weights, weights.name), (pairs, "manifest.json")):
        main(["push", str(path), "me/name", "--dry_run"])
        output = capsys.readouterr().out
        assert output.startswith("---\nlicense: other\n") and f"  {file}\n" in output and "  README.md\n" in output


def test_interrupted_upload_leaves_nothing_and_is_resumed(student, hub, capsys):
    hub.failing = {1}
    line = line_of(capsys, student, "me/letters")
    assert f"{hub.url} answered 410; run the same command again" in line
    assert hub.repositories["models/me/letters"] == INITIAL and hub.uploads
    main(["push", str(student), "me/letters"])
    assert len(hub.uploads) == len(set(hub.uploads)), "nothing was sent twice"
    weights = load_file(student / "unet" / "diffusion_pytorch_model.safetensors")
    assert weights and "README.md" in hub.repositories["models/me/letters"]


def test_refusals_of_the_hub_are_one_line(student, hub, monkeypatch, capsys):
    main(["push", str(student), "me/letters"])
    before = dict(hub.repositories["models/me/letters"])
    assert "me/letters: exists and holds README.md; choose another name" in line_of(capsys, student, "me/letters")
    hub.repositories["models/me/empty"] = dict(INITIAL)
    assert "me/empty: exists and is public" in line_of(capsys, student, "me/empty", "--private")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = line_of(capsys, student, "me/other")
    assert f"{hub.url} refuses the token (401); set HF_TOKEN" in line and "hf_wrong" not in line
    monkeypatch.delenv("HF_TOKEN")
    assert "push: no token; set HF_TOKEN" in line_of(capsys, student, "me/other")
    assert hub.repositories["models/me/letters"] == before and "models/me/other" not in hub.repositories


def test_no_network_is_one_line(student, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        line = line_of(capsys, student, "me/letters")
    assert "cannot be reached" in line and "run the same command again" in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in line_of(capsys, student, "me/letters")


def test_what_is_none_of_the_three_is_one_line(student, pairs, weights, tmp_path, capsys):
    def line(path, name="me/name"):
        return line_of(capsys, path, name, "--dry_run")

    empty = tmp_path / "empty"
    empty.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "no such file or folder" in line(tmp_path / "nothing")
    for path in (empty, tmp_path / "other.safetensors"):
        assert f"{path}: holds no export (diffgan.json), pair set (manifest.json) or perceptual weights" in line(path)
    two = shutil.copytree(weights.parent, tmp_path / "two", ignore=shutil.ignore_patterns("teacher"))
    assert f"{two}: holds 2 files of perceptual weights; name one of them" in line(two)
    torn = shutil.copytree(pairs, tmp_path / "torn")
    next(torn.glob("*-00002-*")).unlink()
    assert "shard is missing" in line(torn)
    half = shutil.copytree(student, tmp_path / "half")
    shutil.rmtree(half / "vae")
    assert "vae: holds no files, but model_index.json names it" in line(half)
    (half / "diffgan.json").write_text("{")
    assert "diffgan.json: cannot be read" in line(half)
    for name in ("name", "a/b/c", "me/na me", "/x"):
        assert line(student, name).startswith(f"diffgan: error: {name}: ")
