"""The adversarial losses: pure functions, one per equation (paper, section 3.3; DESIGN: L_D and L_G)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgan.nets.discriminator import ReadOut


def non_saturating(read_outs: Sequence[ReadOut], towards: int) -> Tensor:
    """softplus(-D) for `towards` = 1 (taken for real), softplus(D) for -1 (for fake), averaged over scales and places.

    Returns:
        (N,) float32: every read-out counts the same, whatever the size of its map.
    """
    maps = [F.softplus(-towards * read_out.logits.float()).flatten(1).mean(1) for read_out in read_outs]
    return torch.stack(maps).mean(0)


def score(read_outs: Sequence[ReadOut]) -> Tensor:
    """D's opinion of a sample: its logits averaged over each map, then over scales and places: (N,) float32."""
    return torch.stack([read_out.logits.float().flatten(1).mean(1) for read_out in read_outs]).mean(0)


def opinions(real: Tensor, fake: Tensor, replaced: Tensor) -> dict[str, Tensor]:
    """D's mean scores of real, generated and mismatched samples, and how often their sign is right, by curve.

    real, fake: scores, (N,); replaced: (N,) bool.
    """
    scores = {"real": real, "fake": fake[~replaced], "mismatched": fake[replaced]}
    scores = {name: values for name, values in scores.items() if len(values)}
    right = {name: (values > 0 if name == "real" else values < 0).float().mean() for name, values in scores.items()}
    means = {f"d/{name}": values.mean() for name, values in scores.items()}
    return means | {f"d/right_about_{name}": share for name, share in right.items()}


def rows(read_outs: Sequence[ReadOut], chosen: slice) -> list[ReadOut]:
    """The read-outs of some samples of the batch."""
    return [read_out._replace(logits=read_out.logits[chosen]) for read_out in read_outs]


def balance(regression: Tensor, adversarial: Tensor) -> Tensor:
    """|grad L_reg| / |grad L_GAN|, the weight that gives both losses the same say (Esser et al. 2021, eq. 7).

    Args:
        regression, adversarial: squared norms of the gradients at the generator's output: ().

    Returns:
        (), at most 1e4.
    """
    return (regression.sqrt() / (adversarial.sqrt() + 1e-8)).clamp(max=1e4)
