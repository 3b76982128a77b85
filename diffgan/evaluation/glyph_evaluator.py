"""The judge of glyph generators: one protocol, one generator, one flat record of figures."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from diffgan.errors import UserError
from diffgan.evaluation.features.base import FeatureExtractor
from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.evaluation.metrics.distances import FeatureStatistics, frechet_distance, kernel_distance
from diffgan.evaluation.metrics.diversity import mean_pairwise_distance, share_within_prompts
from diffgan.evaluation.metrics.glyph_alignment import alignment
from diffgan.evaluation.preprocessing import with_grain
from diffgan.evaluation.protocols.glyphs import POPULATION, SPLIT, GlyphProtocol
from diffgan.glyphs import recipe
from diffgan.glyphs.reader import GlyphReader, load_reader
from diffgan.glyphs.recipe import Glyph
from diffgan.glyphs.typefaces import SIDE
from diffgan.images import finite_uint8, to_uint8
from diffgan.noise import draw_noise
from diffgan.storage.tensor_files import write_tensors
from diffgan.teachers.base import Teacher

# (noise (N, C, H, W), N prompts) -> images (N, 3, 64, 64) in [-1, 1], on any device
Generate = Callable[[Tensor, list[str]], Tensor]

# Suffix of the figures -> standard deviation, in levels of 255, of the grain that both sides get before features look
# at them. Painted glyphs are perfectly flat; without grain an unevenness of 2 levels, which nobody sees, moves FD and
# KID more than a plain blur does.
LOOKS = {"": 0.0, "_grain": 8.0}
MADE_GRAIN_SEED, REAL_GRAIN_SEED = 3_200_000_000, 3_300_000_000


class RealFeatures(NamedTuple):
    """Features of a protocol's real pictures: reference (N, D), floor (N, D), population (P, k, D)."""

    reference: Tensor
    floor: Tensor
    population: Tensor


class GlyphEvaluator:
    """Judge generators by a protocol.

    Args:
        protocol: what is generated and compared with.
        extractor: features of the distances; names them (`fd_<name>`, `kid_<name>`).
        reader: names the character of a picture; by default the one that ships with the package.
        cache: directory where features of the real pictures are kept between runs; None keeps them in memory only.
        batch_size: images generated, and images looked at, at once.
    """

    def __init__(
        self,
        protocol: GlyphProtocol,
        extractor: FeatureExtractor | None = None,
        reader: GlyphReader | None = None,
        cache: Path | None = None,
        batch_size: int = 50,
    ):
        self.protocol, self.cache, self.batch_size = protocol, cache, batch_size
        self.extractor = EfficientNetFeatures() if extractor is None else extractor
        self.reader = load_reader() if reader is None else reader
        self._real: dict[str, RealFeatures] = {}

    def evaluate(self, generate: Generate, latent_shape: Sequence[int]) -> dict[str, float | str]:
        """Figures of a generator, called with noise (n, *latent_shape) and n prompts at a time.

        Returns:
            fd_X, kid_X of extractor X and their `_floor` (other real pictures in the generator's place); diversity
            among images of a prompt, `_real` (that of real pictures), and `_ratio`; the same of pictures with grain,
            `..._grain`; reading: share of the images whose character is read as asked; colour: share of the colours
            asked for that are seen; both also `_real`; seconds_per_image of generation; images; grain, its standard
            deviation; protocol and its digest.
        """
        images, seconds = self._generate(generate, latent_shape)
        looked = {}
        for look, grain in LOOKS.items():
            features = self._features(images, "looking at images", grain, MADE_GRAIN_SEED)
            looked |= self._distances(features[: self.protocol.images], look)
            looked |= self._diversity(features[self.protocol.images :], look)
        return {
            "protocol": self.protocol.name,
            "protocol_digest": self.protocol.digest,
            "images": float(len(images)),
            "grain": LOOKS["_grain"],
            "seconds_per_image": seconds / len(images),
            **self._alignment(images[: self.protocol.images]),
            **looked,
        }

    def _generate(self, generate: Generate, latent_shape: Sequence[int]) -> tuple[Tensor, float]:
        prompts, seeds = self.protocol.prompts, self.protocol.seeds
        images, seconds = [], 0.0
        for rows in self._batches(len(prompts), "judge: generating"):
            noise = draw_noise(seeds[rows], tuple(latent_shape))
            start = time.perf_counter()
            with torch.no_grad():
                made = generate(noise, prompts[rows]).cpu()
            seconds += time.perf_counter() - start
            if made.shape != (len(noise), 3, SIDE, SIDE):
                raise UserError(f"protocol {self.protocol.name} judges {SIDE}x{SIDE} images, not {tuple(made.shape)}")
            images.append(finite_uint8(made, prompts[rows], seeds[rows]))
        return torch.cat(images), seconds

    def _batches(self, count: int, what: str) -> Iterator[slice]:
        """Slices of at most `batch_size` images under a progress bar that appears after five seconds."""
        with tqdm(total=count, desc=what, unit="image", delay=5, leave=False) as bar:
            for start in range(0, count, self.batch_size):
                rows = slice(start, min(start + self.batch_size, count))
                yield rows
                bar.update(rows.stop - rows.start)

    def _features(self, images: Tensor, what: str, grain: float, seed: int) -> Tensor:
        """Features of images (N, 3, H, W) uint8, with grain of that standard deviation: (N, D)."""
        return torch.cat(
            [
                self.extractor(with_grain(images[rows], grain, range(seed + rows.start, seed + rows.stop)))
                for rows in self._batches(len(images), f"judge: {what}")
            ]
        )

    # ---- figures ----

    def _distances(self, features: Tensor, look: str) -> dict[str, float]:
        real = self.real(look)
        floor = _suffixed(self._between(real.floor, real.reference, look), "_floor")
        return self._between(features, real.reference, look) | floor

    def _between(self, features: Tensor, others: Tensor, look: str) -> dict[str, float]:
        """Both distances of two sets of features (N, D)."""
        statistics = FeatureStatistics.of(features), FeatureStatistics.of(others)
        found = {"fd": frechet_distance(*statistics), "kid": kernel_distance(features, others)}
        return {f"{name}_{self.extractor.name}{look}": value for name, value in found.items()}

    def _alignment(self, images: Tensor) -> dict[str, float]:
        captions = [glyph.caption for glyph in self.protocol.reference]
        real = alignment(self.reader, _pictures(SPLIT, self.protocol.reference), captions)
        return alignment(self.reader, images, captions) | _suffixed(real, "_real")

    def _diversity(self, features: Tensor, look: str) -> dict[str, float]:
        population = self.real(look).population
        made = mean_pairwise_distance(features.unflatten(0, population.shape[:2]))
        real = mean_pairwise_distance(population)
        return _suffixed({"diversity": made, "diversity_real": real, "diversity_ratio": made / real}, look)

    # ---- figures of a pipeline, not of its pictures alone ----

    def reconstruction(self, teacher: Teacher) -> dict[str, float]:
        """Reading, colours, FD and KID (`..._reconstruction`) of real pictures through the autoencoder: a bound.

        Their distances are those to the other real pictures, which the floor is measured with.
        """
        pictures, images = recipe.paint(SPLIT, self.protocol.reference), []
        captions = [glyph.caption for glyph in self.protocol.reference]
        for rows in self._batches(len(pictures), "judge: reconstructing"):
            decoded = teacher.decode(teacher.encode_images(pictures[rows]))
            images.append(finite_uint8(decoded, captions[rows]).cpu())
        images = torch.cat(images)
        figures = alignment(self.reader, images, captions)
        for look, grain in LOOKS.items():
            features = self._features(images, "looking at reconstructions", grain, MADE_GRAIN_SEED)
            figures |= self._between(features, self.real(look).floor, look)
        return _suffixed(figures, "_reconstruction")

    def noise_share(self, teacher: Teacher, latents: Tensor) -> dict[str, float]:
        """noise_share, noise_share_real: share of the latents' variance that the prompt leaves open.

        Args:
            latents: (N, C, H, W), one for each of the protocol's prompts.
        """
        population = recipe.paint(POPULATION, list(chain(*self.protocol.population)))
        real = torch.cat([teacher.encode_images(part) for part in population.split(self.batch_size)])
        shape = (-1, self.protocol.images_per_prompt)
        return {
            "noise_share": share_within_prompts(latents[self.protocol.images :].unflatten(0, shape)),
            "noise_share_real": share_within_prompts(real.unflatten(0, shape)),
        }

    # ---- the real pictures ----

    def real(self, look: str) -> RealFeatures:
        """Features of the real pictures, computed once and kept; look: a key of `LOOKS`."""
        if look not in self._real:
            file = self._cache_file(look)
            if file is not None and file.is_file():
                self._real[look] = RealFeatures(**load_file(file))
            else:
                self._real[look] = self._look_at_real(LOOKS[look])
                if file is not None:
                    write_tensors(file, self._real[look]._asdict())
        return self._real[look]

    def _look_at_real(self, grain: float) -> RealFeatures:
        protocol = self.protocol
        population = _pictures(POPULATION, list(chain(*protocol.population)))
        images = torch.cat([_pictures(SPLIT, protocol.reference), _pictures(SPLIT, protocol.floor), population])
        parts = (protocol.images, protocol.images, len(population))
        features = self._features(images, "looking at real pictures", grain, REAL_GRAIN_SEED)
        reference, floor, varied = features.split(parts)
        return RealFeatures(reference, floor, varied.unflatten(0, (-1, protocol.images_per_prompt)))

    def _cache_file(self, look: str) -> Path | None:
        grain = f" {LOOKS[look]} {REAL_GRAIN_SEED}" if look else ""
        key = hashlib.blake2b(f"{self.protocol.digest} {self.extractor.identity}{grain}".encode(), digest_size=6)
        return self.cache and self.cache / f"real-{self.protocol.name}-{key.hexdigest()}.safetensors"


def _pictures(split: str, glyphs: list[Glyph]) -> Tensor:
    return to_uint8(recipe.paint(split, glyphs))


def _suffixed(figures: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{name}{suffix}": value for name, value in figures.items()}
