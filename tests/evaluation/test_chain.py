"""The whole chain, from files to metrics: against torch-fidelity on the same folders, and on two processes."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch_fidelity
import yaml
from PIL import Image

from callbacks.coco_fid import COCOFID
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.evaluation.features.inception import InceptionFeatures
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.images import from_uint8, to_uint8
from diffgan.noise import draw_noise
from tests.devices import NothingToMove
from tests.pipelines import random_inception
from tests.processes import start_ranks
from tests.teacher_images import write_teacher_images

LATENT, SEED = (4, 8, 8), 3_000_000_000


def synthetic(count, seed, side):
    """Coloured blots with noise: (count, 3, side, side) uint8."""
    drawn = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=drawn).float()
    images = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    return (images + 20 * torch.randn(images.shape, generator=drawn)).clamp(0, 255).to(torch.uint8)


def save_all(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def write_protocol(folder, images, **fields):
    (folder / "captions.txt").write_text("\n".join(f"{i} dogs" for i in range(images)))
    fields = {"name": "chain", "captions": str(folder / "captions.txt"), "images": images, "seed_base": SEED} | fields
    (folder / "chain.yaml").write_text(yaml.safe_dump(fields))
    return folder / "chain.yaml"


def test_metrics_are_those_of_torch_fidelity(tmp_path):
    """On images of Inception's side, where neither tool resizes; subsets are the whole sets."""
    count = 10
    generated, real = synthetic(count, 0, 299), synthetic(count, 1, 299)
    folders = [save_all(tmp_path / name, images) for name, images in (("generated", generated), ("real", real))]
    random_inception(tmp_path / "inception.pth")
    expected = torch_fidelity.calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(tmp_path / "inception.pth"),
        **{"fid": True, "kid": True, "prc": True, "kid_subsets": 2, "kid_subset_size": count, "batch_size": 8},
        **{"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True},
    )
    names = ["fid", "kid", "precision_recall"]
    protocol = read_protocol(write_protocol(tmp_path, count, side=299, reference=str(folders[1]), metrics=names))
    extractor = InceptionFeatures(tmp_path / "inception.pth")
    queue = list(from_uint8(generated))
    metrics = CocoEvaluator(protocol, extractor, batch_size=8).evaluate(
        lambda noise, prompts, *_: torch.stack([queue.pop(0) for _ in prompts]), LATENT
    )
    name = extractor.name
    assert metrics[f"fd_{name}"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert metrics[f"kid_{name}"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert metrics[f"precision_{name}"] == pytest.approx(expected["precision"])
    assert metrics[f"recall_{name}"] == pytest.approx(expected["recall"])
    assert metrics["kid_subset_size"] == count and metrics["kid_subsets"] == 100


# ---- one and two processes ----

NAMES = ["fid", "kid", "precision_recall", "fid_t", "distance_n", "diversity"]
IMAGES, SIDE = 11, 32  # an odd number of images, and of batches


def paint(noise):
    return torch.nn.functional.interpolate(noise[:, :3], size=SIDE, mode="bilinear").clamp(-1, 1)


class Student(NothingToMove, pl.LightningModule):
    """The least that the callback needs of `Diffusion2GAN`."""

    class teacher:
        latent_shape = LATENT
        encode = staticmethod(lambda prompts: torch.zeros(len(prompts), 1, 1))
        decode = staticmethod(paint)

    images_seen = 0

    def generator_ema(self, noise, conditioning):
        return noise

    def validation_step(self, *_):
        pass

    def val_dataloader(self):
        return [0]


def validate(devices, folder, cache):
    """What the callback computes on so many processes."""
    torch.set_num_threads(1)
    extractor = EfficientNetFeatures()
    options = {"cache": cache, "batch_size": 2, "teacher_images": folder / "teacher"}
    callback = COCOFID(folder / "chain.yaml", extractor=extractor, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(accelerator="cpu", devices=devices, callbacks=[callback], **quiet).validate(Student(), verbose=False)
    return {name: value for name, value in callback.metrics.items() if name != "seconds_per_image"}


def _validate_as_rank(rank: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in (place | address).items()})
    (folder / f"{rank}.json").write_text(json.dumps(validate(2, folder, folder / "cache")))


def test_two_processes_compute_what_one_does(tmp_path):
    save_all(tmp_path / "real", synthetic(9, 1, 40))
    fields = {"side": SIDE, "reference": str(tmp_path / "real"), "metrics": NAMES}
    protocol = read_protocol(write_protocol(tmp_path, IMAGES, **fields, diversity_prompts=2, images_per_prompt=2))
    teacher = to_uint8(-paint(draw_noise(list(protocol.seeds), LATENT)))
    write_teacher_images(tmp_path / "teacher", "chain", protocol.digest, teacher)
    processes = start_ranks(_validate_as_rank, tmp_path)
    expected = validate(1, tmp_path, None)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second and first["images"] == IMAGES + 4
    kinds = ["fd", "kid", "precision", "recall", "fd_t", "distance_n", "diversity"]
    assert {f"{kind}_efficientnet" for kind in kinds} <= first.keys()
    for name, value in expected.items():
        assert first[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-6))
    files = sorted(file.name.rsplit("-", 1)[0] for file in (tmp_path / "cache").glob("*.safetensors"))
    assert files == ["features-chain", "real-chain", "teacher-chain"]
    again = validate(1, tmp_path, tmp_path / "cache")  # from what both processes have kept
    for name, value in first.items():
        assert again[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-6))
