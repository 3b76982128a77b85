"""The adversarial losses L_D and L_GAN: non-saturating logistic losses on maps of logits (paper, section 3.3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgan.losses.mix_and_match import GENERATED, NAMES
from diffgan.nets.read_outs import ReadOut
from diffgan.training.transfer import to_device


def discriminator_loss(real: Sequence[ReadOut], fake: Sequence[ReadOut]) -> Tensor:
    """L_D = softplus(-D(x, z, c)) + softplus(D(x~, z, c)), averaged over the batch (paper, section 3.3).

    Args:
        real: D's read-outs of N real latents.
        fake: D's read-outs of N fake latents x~: generated ones, some of them replaced by mix-and-match.

    Returns:
        () float32.
    """
    return classification_loss(real, is_real=True) + classification_loss(fake, is_real=False)


def classification_loss(read_outs: Sequence[ReadOut], is_real: bool) -> Tensor:
    """One of the two terms of L_D: softplus(-D) for real samples, softplus(D) for fake ones, averaged over the batch.

    Args:
        read_outs: D's read-outs of N samples.
        is_real: what the samples are.

    Returns:
        () float32.
    """
    return mean_softplus(read_outs, -1 if is_real else +1).mean()


def generator_loss(fake: Sequence[ReadOut]) -> Tensor:
    """L_GAN = softplus(-D(x^, z, c)), averaged over the batch (paper, section 3.3).

    Args:
        fake: D's read-outs of N generated latents.

    Returns:
        () float32.
    """
    return mean_softplus(fake, -1).mean()


def mean_softplus(read_outs: Sequence[ReadOut], sign: int) -> Tensor:
    """softplus(sign * D) of every sample, averaged over each map, then over the maps.

    Every read-out has the same weight, whatever the size of its map.

    Args:
        read_outs: maps of logits of N samples.
        sign: -1 for samples that should be classified as real, 1 for fake.

    Returns:
        (N,) float32.
    """
    maps = [F.softplus(sign * read_out.logits.float()).flatten(1).mean(1) for read_out in read_outs]
    return torch.stack(maps).mean(0)


def score(read_outs: Sequence[ReadOut]) -> Tensor:
    """D's score of every sample: its logits averaged over each map, then over the maps: (N,) float32."""
    return torch.stack([read_out.logits.float().flatten(1).mean(1) for read_out in read_outs]).mean(0)


def discriminator_statistics(real: Tensor, fake: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    """Mean scores and accuracies of D on real samples and on each kind of fake ones.

    Args:
        real: scores of real samples, (N,); correct when above 0.
        fake: scores of fake samples, (N,); correct when below 0.
        kinds: of the fake samples, (N,) on the CPU, see `mix_and_match.fake_kinds`.

    Returns:
        `d/score_*` and `d/accuracy_*`, each (), for real, fake (generated), and mismatched_text, _noise and _latent. A
        kind without samples is omitted.
    """
    statistics = _statistics("real", real, real > 0)
    for kind, name in {GENERATED: "fake", **NAMES}.items():
        rows = (kinds == kind).nonzero().flatten()
        if len(rows):
            scores = fake[to_device(rows, fake.device)]
            statistics |= _statistics(name, scores, scores < 0)
    return statistics


def _statistics(name: str, scores: Tensor, correct: Tensor) -> dict[str, Tensor]:
    return {f"d/score_{name}": scores.mean(), f"d/accuracy_{name}": correct.float().mean()}


def balance(regression: Tensor, adversarial: Tensor) -> Tensor:
    """|grad L_reg| / |grad L_GAN|: the weight that makes both gradients equally long (Esser et al. 2021, eq. 7).

    Args:
        regression: squared norm of the gradient of L_reg at the generator's output, or a mean of such norms: ().
        adversarial: the same of L_GAN: ().

    Returns:
        (), at most 1e4.
    """
    return (regression.sqrt() / (adversarial.sqrt() + 1e-8)).clamp(max=1e4)
