"""How much the images of one prompt differ from each other, and what share of all differences that is."""

import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.features.base import DREAMSIM_FEATURES
from diffgan.evaluation.grain import PLAIN, View
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.base import ALL, Column, ImageMetric
from diffgan.evaluation.metrics.image_distances import image_distances
from diffgan.evaluation.real_images import RealImages


class Diversity(ImageMetric):
    """`mean_pairwise_distance` of the images of one prompt, and its ratio to that of real images of the prompt.

    Keys: diversity, diversity_real, diversity_ratio, each with the view's suffix.

    Args:
        view: how the extractor gets the images.
        selected: the protocol's rows that count: k images of each of P prompts, in the order of the real ones.
        population: name of the set of real images, k of each prompt.
    """

    def __init__(self, view: View = PLAIN, selected: slice = ALL, population: str = "population"):
        super().__init__(selected)
        self.view, self.population_name = view, population

    @property
    def columns(self) -> tuple[Column, ...]:
        heading = f"diversity / real, {self.view.name}" if self.view.name else "diversity / real"
        return (Column(f"diversity_ratio{self.view.suffix}", heading, 3, real_text="1"),)

    def setup(self, real: RealImages) -> None:
        population = real.features(self.population_name, self.view)  # (P, k, D)
        self.shape = population.shape[:2]
        self.real = mean_pairwise_distance(population)

    def measure(self, batch: ImageBatch) -> Tensor:
        return batch.features(self.view)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        diversity = mean_pairwise_distance(measured.unflatten(0, self.shape))
        values = {"diversity": diversity, "diversity_real": self.real, "diversity_ratio": diversity / self.real}
        return {f"{name}{self.view.suffix}": value for name, value in values.items()}


class PromptDiversity(ImageMetric):
    """Mean of `image_distances` between two images of one prompt; with DreamSim's features it is DreamDiv.

    Keys: dreamdiv, or diversity_<extractor> of any other extractor.

    Args:
        extractor: name of the features.
        selected: the protocol's rows that count: k images of each prompt, one prompt after the other.
        images_per_prompt: k, two or more.
    """

    def __init__(self, extractor: str, selected: slice, images_per_prompt: int):
        super().__init__(selected, extractor)
        self.images_per_prompt = images_per_prompt

    @property
    def name(self) -> str:
        """The key: only that of DreamSim's features is called "dreamdiv"."""
        return "dreamdiv" if self.extractor == DREAMSIM_FEATURES else f"diversity_{self.extractor}"

    @property
    def columns(self) -> tuple[Column, ...]:
        heading = "DreamDiv" if self.extractor == DREAMSIM_FEATURES else "diversity"
        return (Column(self.name, heading, 3, better="higher"),)

    def measure(self, batch: ImageBatch) -> Tensor:
        return batch.features(extractor=self.extractor)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        k = self.images_per_prompt
        sums = [image_distances(own[:, None], own[None], self.extractor).sum() for own in measured.split(k)]
        return {self.name: torch.stack(sums).mean().item() / (k * (k - 1))}


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance between the images of a prompt, averaged over prompts.

    Args:
        features: (P, k, D) of k >= 2 images of each of P prompts.
    """
    prompts, images, _ = features.shape
    if images < 2:
        raise UserError(f"diversity needs two or more images a prompt, there are {images}")
    distances = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.sum() / (prompts * images * (images - 1))).item()


def share_within_prompts(latents: Tensor) -> float:
    """E[Var(x | c)] / Var(x): the share of the variance that the noise decides, not the prompt; in [0, 1].

    Args:
        latents: (P, k, ...) of k >= 2 images of each of P >= 2 prompts.
    """
    latents = latents.double().flatten(2)
    within = latents.var(1).mean(0).sum()
    between = latents.mean(1).var(0).sum() - within / latents.shape[1]  # less what k images leave of the noise
    return (within / (within + between.clamp_min(0))).item()
