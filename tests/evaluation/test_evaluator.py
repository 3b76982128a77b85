"""The evaluation loop: metrics of one file each, and the same numbers on one and on two processes."""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from callbacks.glyph_evaluation import GlyphEvaluation
from diffgan.errors import UserError
from diffgan.evaluation.evaluator import Evaluator
from diffgan.evaluation.features.registry import Extractors
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.layouts import Flat as FlatLayout
from diffgan.evaluation.metrics.base import Column, ImageMetric
from diffgan.evaluation.metrics.diversity import Diversity
from diffgan.evaluation.protocols.glyphs import GLYPH_PROTOCOLS, GlyphProtocol
from diffgan.evaluation.saved_images import SavedImages
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit
from tests.devices import NothingToMove
from tests.processes import start_ranks

LATENT = (4, 16, 16)
PROTOCOL = GlyphProtocol("tiny", images=61, diversity_prompts=5, images_per_prompt=4)  # an odd number in all


class Brightness(ImageMetric):
    """A metric as a user adds it: the mean level of all images, and the row of the brightest."""

    columns = (Column("brightness", "brightness", 2),)

    def measure(self, batch):
        return batch.images.double().mean((1, 2, 3))

    def summarize(self, measured):
        return {"brightness": measured.mean().item(), "brightest": float(measured.argmax()), "count": len(measured)}


class Averages(nn.Module):
    """A cheap extractor: the image at 4x4."""

    name, identity = "averages", "averages 4"

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)


class Flat:
    """A protocol of seven images without real ones."""

    name, digest, prompts, seeds = "flat", "0" * 16, [str(i) for i in range(7)], range(10, 17)

    def metrics(self, extractor):
        return [Brightness()]


class FlatEvaluator(Evaluator):
    def build_real_images(self, device, split):
        return None


def flat(noise, prompts, seeds):
    """Image i has the level of its prompt."""
    return torch.stack([torch.full((3, 8, 8), int(prompt) / 10) for prompt in prompts])


def test_new_metric_needs_one_class():
    evaluator = FlatEvaluator(Flat(), Averages(), batch_size=3)
    metrics = evaluator.evaluate(flat, LATENT)
    assert metrics["images"] == metrics["count"] == 7 and metrics["brightest"] == 6
    assert metrics["brightness"] == pytest.approx(255 * (0.3 + 1) / 2, abs=0.5)
    assert evaluator.evaluate(flat, LATENT)["count"] == 7  # a second evaluation begins anew


@pytest.mark.parametrize("world", [2, 3, 4, 9])
def test_each_image_counts_once_in_the_protocols_order(world):
    """The states of several processes, gathered rank by rank as a strategy does it."""
    ranks = []
    for rank in range(world):
        metric = Brightness()
        for part in map(list, WorkSplit(rank, world, None).batches(7, 2)):
            images = torch.stack([torch.full((3, 2, 2), 10 * row, dtype=torch.uint8) for row in part])
            metric.update(ImageBatch(part, images, [""] * len(part), Extractors(Averages())))
        ranks.append(metric)
    states = [[torch.cat(getattr(metric, name)) for metric in ranks] for name in ranks[0]._defaults]

    def gather(own):
        """What the processes give: the lengths of their states, or a state, padded to the same length."""
        if own.shape == (1,) and own.dtype == torch.int64 and own.item() == len(states[0][0]):
            return torch.tensor([[len(part)] for part in states[0]])
        (parts,) = [parts for parts in states if parts[0].dtype == own.dtype]
        return torch.stack([nn.functional.pad(part, (0, len(own) - len(part))) for part in parts])

    with ranks[0].sync_context(WorkSplit(0, world, gather).gather_list, distributed_available=lambda: True):
        metrics = ranks[0].compute()
    assert metrics == {"brightness": 30.0, "brightest": 6.0, "count": 7}


def test_features_are_computed_once_for_all_metrics():
    calls = []

    class Counted(Averages):
        def forward(self, images):
            calls.append(len(images))
            return super().forward(images)

    evaluator = GlyphEvaluator(PROTOCOL, Counted(), batch_size=81)
    evaluator.real_images().features("floor", evaluator.metrics[0].view)
    evaluator.real_images().features("floor", evaluator.metrics[2].view)
    calls.clear()
    evaluator.evaluate(stretched, LATENT)
    assert calls == [81, 81]  # with and without grain, though five metrics use them


def test_diversity_follows_the_order_of_the_prompts():
    """Images of a prompt are k neighbouring rows, whatever the order in which batches come."""
    metric = Diversity()
    metric.shape, metric.real = (2, 2), 1.0
    for rows, levels in (([3, 0], [9, 1]), ([1, 2], [4, 5])):
        images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(2, 3, 4, 4)
        metric.update(ImageBatch(rows, images, ["", ""], Extractors(Averages())))
    one, two = 3 / 255 * 48**0.5, 4 / 255 * 48**0.5  # levels 1 and 4 of one prompt, 5 and 9 of the other
    assert metric.compute()["diversity"] == pytest.approx((one + two) / 2)


# ---- one and two processes ----


def stretched(noise, prompts, seeds):
    return nn.functional.interpolate(noise[:, :3], size=64)


class Student(NothingToMove, pl.LightningModule):
    """The least that the callback needs of `Diffusion2GAN`."""

    class teacher:
        latent_shape = LATENT
        encode = staticmethod(lambda prompts: torch.zeros(len(prompts), 1, 1))
        decode = staticmethod(lambda latent: stretched(latent, None, None))

    images_seen = 0

    def generator_ema(self, noise, conditioning):
        assert len(noise) == len(conditioning)
        return noise

    def validation_step(self, *_):
        pass

    def val_dataloader(self):
        return [0]


def validate(devices: int, cache: Path | None) -> dict[str, float | str]:
    """What the callback computes on so many processes."""
    torch.set_num_threads(1)
    GLYPH_PROTOCOLS["tiny"] = PROTOCOL
    callback = GlyphEvaluation("tiny", cache=cache)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(accelerator="cpu", devices=devices, callbacks=[callback], **quiet).validate(Student(), verbose=False)
    return callback.metrics


def _validate_as_rank(rank: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in (place | address).items()})
    (folder / f"{rank}.json").write_text(json.dumps(validate(2, folder / "cache")))


def test_two_processes_compute_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setitem(GLYPH_PROTOCOLS, "tiny", PROTOCOL)
    processes = start_ranks(_validate_as_rank, tmp_path)
    expected = validate(1, None)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(list((tmp_path / "cache").glob("real-tiny-*.safetensors"))) == 2
    for metrics in (first, second, expected):
        del metrics["seconds_per_image"]
    assert first == second and first["images"] == 81 and first["protocol_digest"] == PROTOCOL.digest
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert {name: first[name] for name in numbers} == pytest.approx(numbers, rel=1e-6, abs=1e-6)


def test_saved_images_are_measured_as_they_are(tmp_path):
    """They are read in whole batches; a damaged one is refused."""

    def saved():
        return SavedImages(tmp_path / "images", FlatLayout(Flat.prompts), {"images": 7}, SINGLE_PROCESS)

    evaluator = FlatEvaluator(Flat(), Averages(), batch_size=3)
    first = evaluator.evaluate(flat, LATENT, saved=saved())
    assert "seconds_per_image" in first and (tmp_path / "images" / "images.json").is_file()
    again = evaluator.evaluate(None, LATENT, saved=saved())  # without a generator
    assert again == {key: value for key, value in first.items() if key != "seconds_per_image"}
    (tmp_path / "images" / "00000.png").unlink()
    assert evaluator.evaluate(lambda *_: torch.ones(3, 3, 8, 8), LATENT, saved=saved())["brightest"] == 0
    file = tmp_path / "images" / "00003.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"00003\.png: cannot be read as an image"):
        evaluator.evaluate(flat, LATENT, saved=saved())
