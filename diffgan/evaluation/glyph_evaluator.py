"""Evaluate generators of glyphs: distances to held-out typefaces, diversity, and whether captions are followed."""

from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.evaluator import Evaluator
from diffgan.evaluation.features.base import FeatureExtractor
from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.evaluation.grain import GRAIN, REAL_SEED, View, with_grain
from diffgan.evaluation.metrics.diversity import share_within_prompts
from diffgan.evaluation.protocols.glyphs import POPULATION, SPLIT, GlyphProtocol
from diffgan.evaluation.real_images import RealImages, cache_file, cached_tensors
from diffgan.evaluation.samplers import Autoencoder
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit
from diffgan.glyphs import recipe
from diffgan.glyphs.reader import GlyphReader
from diffgan.glyphs.recipe import Glyph
from diffgan.glyphs.typefaces import SIDE
from diffgan.images import finite_uint8, to_uint8


class RealFeatures(NamedTuple):
    """Features of a protocol's real images: reference (N, D), floor (N, D), population (P, k, D)."""

    reference: Tensor
    floor: Tensor
    population: Tensor


class RealGlyphs(RealImages):
    """The real glyphs of a protocol: `reference`, `floor`, and `population` of the prompts of the diversity measure.

    Args: as those of `GlyphEvaluator`; device, split: where features are computed, and by which processes.
    """

    def __init__(
        self,
        protocol: GlyphProtocol,
        extractor: FeatureExtractor,
        cache: Path | None,
        batch_size: int,
        device: torch.device | str,
        split: WorkSplit,
    ):
        self.protocol, self.extractor, self.cache, self.batch_size = protocol, extractor, cache, batch_size
        self.device, self.split = device, split
        self._features: dict[View, RealFeatures] = {}

    def images(self, name: str) -> Tensor:
        if name == "population":
            return _rendered(POPULATION, list(chain(*self.protocol.population)))
        return _rendered(SPLIT, getattr(self.protocol, name))

    def captions(self, name: str) -> list[str]:
        return [glyph.caption for glyph in getattr(self.protocol, name)]

    def features(self, name: str, view: View) -> Tensor:
        if view not in self._features:
            file = cache_file(self.cache, self.protocol.name, self.protocol.digest, self.extractor, view)
            tensors = cached_tensors(file, lambda: self._compute(view)._asdict(), self.split)
            self._features[view] = RealFeatures(**tensors)
        return getattr(self._features[view], name)

    def _compute(self, view: View) -> RealFeatures:
        images = [self.images(name) for name in RealFeatures._fields]
        reference, floor, population = self._extract(torch.cat(images), view).split([len(part) for part in images])
        return RealFeatures(reference, floor, population.unflatten(0, (-1, self.protocol.images_per_prompt)))

    def _extract(self, images: Tensor, view: View) -> Tensor:
        """Features of images (N, 3, H, W) uint8, with grain of seeds that count from the first: (N, D)."""
        features, own = [], self.split.batches(len(images), self.batch_size)
        for rows in self.split.progress(own, "evaluate: features of real images"):
            grained = with_grain(images[rows], view.grain, [REAL_SEED + row for row in rows])
            features.append(self.extractor(grained.to(self.device)).cpu())
        return self.split.in_order(torch.cat(features), len(images), self.batch_size)


class GlyphEvaluator(Evaluator):
    """Evaluate generators of glyphs by a protocol.

    Args:
        protocol: what is generated and measured.
        extractor: features of the distances; EfficientNet-Lite0 by default.
        reader: names the character of an image; by default the one that ships with the package.
        cache: folder where features of the real images are kept between runs; None: in memory only.
        batch_size: images of one process at once.
    """

    settings: ClassVar[dict[str, float]] = {"grain": GRAIN.grain}

    def __init__(
        self,
        protocol: GlyphProtocol,
        extractor: FeatureExtractor | None = None,
        reader: GlyphReader | None = None,
        cache: Path | None = None,
        batch_size: int = 50,
    ):
        extractor = EfficientNetFeatures() if extractor is None else extractor
        super().__init__(protocol, extractor, protocol.metrics(extractor.name, reader), cache, batch_size)
        self.reader = reader

    def build_real_images(self, device: torch.device | str, split: WorkSplit) -> RealGlyphs:
        return RealGlyphs(self.protocol, self.extractor, self.cache, self.batch_size, device, split)

    def prepare(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, SIDE, SIDE):
            raise UserError(f"protocol {self.protocol.name} evaluates {SIDE}x{SIDE} images, not {tuple(images.shape)}")
        return images

    # ---- of a pipeline, not of its images alone ----

    @torch.no_grad()
    def reconstruction(self, teacher: Autoencoder, split: WorkSplit = SINGLE_PROCESS) -> dict[str, float]:
        """Metrics (`..._reconstruction`) of real images through the autoencoder: what no generator of it exceeds.

        Their distances are those to the other real images, which the floor is measured with (collective).
        """
        rendered = recipe.paint(SPLIT, self.protocol.reference)

        def images_of(rows: list[int]) -> Tensor:
            decoded = teacher.decode(teacher.encode_images(rendered[rows]))
            return finite_uint8(decoded, [self.prompts[row] for row in rows]).cpu()

        metrics = self.protocol.reconstruction_metrics(self.extractor.name, self.reader)
        for metric in metrics:
            metric.load()
        values = self.measure(metrics, images_of, self.protocol.images, "evaluate: reconstructing", split=split)
        return {f"{name}_reconstruction": value for name, value in values.items()}

    def noise_share(self, teacher: Autoencoder, latents: Tensor) -> dict[str, float]:
        """noise_share, noise_share_real: share of the latents' variance that the prompt leaves open.

        Args:
            teacher: its autoencoder encodes the real images.
            latents: (N, C, H, W), one for each of the protocol's prompts.
        """
        population = recipe.paint(POPULATION, list(chain(*self.protocol.population)))
        real = torch.cat([teacher.encode_images(images) for images in population.split(self.batch_size)])
        shape = (-1, self.protocol.images_per_prompt)
        return {
            "noise_share": share_within_prompts(latents[self.protocol.images :].unflatten(0, shape)),
            "noise_share_real": share_within_prompts(real.unflatten(0, shape)),
        }


def _rendered(split: str, glyphs: list[Glyph]) -> Tensor:
    return to_uint8(recipe.paint(split, glyphs))
