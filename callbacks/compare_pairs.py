"""Teacher and student on held-out pairs at the end of a test: what the page `report.html` shows."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.evaluation import work_split
from callbacks.run_folder import run_folder
from callbacks.run_report import RunReport
from diffgan.errors import UserError
from diffgan.images import finite_uint8
from diffgan.losses.regression import Perceptual, RegressionLoss
from diffgan.methods.base import Distillation
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.pair_set import PairSet
from diffgan.reports.comparison import ComparedPair, Comparison
from diffgan.reports.images import data_uri
from diffgan.reports.origin import origin, relative

FIRST, LARGEST = 12, 6  # pairs that are shown
IMAGES_BYTES = 1_600_000  # of all image files of a page together
DRAWS = 4  # of a distance with random transforms
DECODED_AT_ONCE = 2  # pairs: an autoencoder takes much memory for large images


class ComparePairs(pl.Callback):
    """Compare `generator_ema` with the teacher on the held-out pairs of a test, for the page `report.html`.

    The distance of every pair is that of the run's regression loss; one with random transforms is averaged over the
    same draws for each pair. Images of the first pairs and of those with the largest distances are stored in
    `report.json` in the run's folder. The teacher's are decoded from its latents in the set: its network is not called.
    `has_written` tells whether this process's last test did so.

    Raises:
        UserError: in a test without `RunReport`, whose record the page needs.
    """

    def __init__(self) -> None:
        self.folder, self.has_written = Path(), False
        self._seeds: list[Tensor] = []
        self._distances: list[Tensor] = []

    def setup(self, trainer: pl.Trainer, pl_module: Distillation, stage: str) -> None:
        self.folder = run_folder(trainer)
        if stage == "test" and not any(isinstance(callback, RunReport) for callback in trainer.callbacks):
            raise UserError("ComparePairs: requires the callback RunReport, whose metrics its page shows; add it")

    def on_test_start(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        self._seeds, self._distances, self.has_written = [], [], False

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Distillation, outputs: Tensor, batch: PairBatch, batch_idx: int
    ) -> None:
        """outputs: the generated latents, (N, C, H, W)."""
        self._seeds.append(batch.seed.cpu())
        self._distances.append(pair_distances(pl_module.regression, outputs, batch.latent).cpu())

    @torch.no_grad()
    def on_test_end(self, trainer: pl.Trainer, pl_module: Distillation) -> None:
        """Write `report.json` (collective: weights may be shards)."""
        if not self._seeds:
            return
        pairs: PairSet = trainer.datamodule.pairs
        numbers, distances = self._of_all_processes(pl_module, pairs)
        first = list(range(len(numbers)))[:FIRST]
        largest = distances.nan_to_num(nan=torch.inf).argsort(descending=True, stable=True)[:LARGEST].tolist()
        drawn = _draw(pl_module, pairs, [(numbers[row], float(distances[row])) for row in (*first, *largest)])
        if trainer.is_global_zero:
            groups = drawn[: len(first)], drawn[len(first) :]
            _comparison(pl_module, pairs, distances.tolist(), *groups).write(self.folder)
            self.has_written = True

    def _of_all_processes(self, pl_module: Distillation, pairs: PairSet) -> tuple[list[int], Tensor]:
        """Numbers of the held-out pairs, ascending, and their distances (N,) (collective)."""
        split = work_split(pl_module)
        seeds, distances = (torch.cat(split.gather_list(torch.cat(own))) for own in (self._seeds, self._distances))
        order = seeds.argsort()
        return (seeds[order] - pairs.manifest.seed_base).tolist(), distances[order]


def pair_distances(regression: RegressionLoss, generated: Tensor, target: Tensor) -> Tensor:
    """The distance of every pair alone, with the same random numbers for each: it depends on no other pair.

    Args:
        generated, target: (N, C, H, W).

    Returns:
        (N,), the means over `DRAWS` calls.
    """
    rows = zip(generated.split(1), target.split(1), strict=True)
    return torch.stack([_mean_distance(regression, *row) for row in rows])


def _mean_distance(regression: RegressionLoss, generated: Tensor, target: Tensor) -> Tensor:
    """generated, target: (1, C, H, W) -> ()."""
    draws = [regression(generated, target, torch.Generator().manual_seed(draw)) for draw in range(DRAWS)]
    return torch.cat(draws).mean()


def distance_name(regression: RegressionLoss) -> str:
    """What the page calls the distance: the name of its class."""
    distance = regression.distance if isinstance(regression, Perceptual) else regression
    return type(distance).__name__


def _draw(pl_module: Distillation, pairs: PairSet, shown: list[tuple[int, float]]) -> list[ComparedPair]:
    """The images of pairs (number, distance); collective: weights may be shards."""
    limit = IMAGES_BYTES // (2 * len(shown))
    drawn: list[ComparedPair] = []
    with pl_module.teacher_on_device(denoiser=False) as teacher, pl_module.average_on_device() as generator:
        for start in range(0, len(shown), DECODED_AT_ONCE):
            numbers, distances = zip(*shown[start : start + DECODED_AT_ONCE], strict=True)
            batch = pl_module.transfer_batch_to_device(pairs.read(numbers), pl_module.device, 0)
            seeds = batch.seed.tolist()
            latents = (batch.latent, generator(batch.noise, pl_module.encode(batch)))
            images = [finite_uint8(teacher.decode(latent), batch.prompt, seeds) for latent in latents]
            uris = [[data_uri(image, limit) for image in of_one] for of_one in images]
            drawn += map(ComparedPair, numbers, seeds, batch.prompt, distances, *uris)
    return drawn


def _comparison(
    pl_module: Distillation,
    pairs: PairSet,
    distances: list[float],
    first: list[ComparedPair],
    largest: list[ComparedPair],
) -> Comparison:
    """The record of what was drawn."""
    side = pl_module.teacher.space.factor
    return Comparison(
        origin=origin(),
        teacher=relative(pl_module.teacher_path),
        teacher_digest=pl_module.teacher_digest,
        steps=pairs.manifest.steps,
        guidance=pairs.manifest.guidance,
        pair_set=relative(pairs.folder),
        pair_count=len(pairs),
        images_seen=pl_module.images_seen,
        image_size=[side * length for length in pl_module.teacher.latent_shape[1:]],
        distance_name=distance_name(pl_module.regression),
        distances=distances,
        first=first,
        largest=largest,
    )
