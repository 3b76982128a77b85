"""The adversarial losses: pure functions, one per equation (paper, section 3.3; DESIGN: L_D and L_G)."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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


@contextlib.contextmanager
def second_derivatives(device: torch.device) -> Iterator[None]:
    """Around a penalty on gradients and its backward pass: fp32, attention that can do it, nothing compiled."""
    single = torch.autocast(device.type, enabled=False)
    with single, sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield


def r1_penalty(opinion: Callable[[Tensor, Tensor], Tensor], latent: Tensor, noise: Tensor, with_noise: bool) -> Tensor:
    """|grad_x D(x, z)|^2 of every sample, differentiable (Mescheder et al. 2018, R1, without its gamma / 2).

    Args:
        opinion: (latent, noise) -> (N,).
        latent, noise: (N, C, H, W), both real.
        with_noise: add |grad_z D|^2.

    Returns:
        (N,)
    """
    inputs = [latent.detach().requires_grad_(True)]
    noise = noise.detach().requires_grad_(with_noise)
    inputs += [noise] if with_noise else []
    gradients = torch.autograd.grad(opinion(inputs[0], noise).sum(), inputs, create_graph=True)
    return sum(gradient.square().flatten(1).sum(1) for gradient in gradients)


def rotating_rows(batch: int, samples: int, turn: int) -> range:
    """Which `samples` rows of a batch are penalised at the turn-th time: evenly spaced, the first moving by one a turn.

    Batches that are contiguous shares of a larger one choose together the rows that the larger one would.
    """
    stride = batch // samples
    return range(turn % stride, batch, stride)


def neighbours(latent: Tensor) -> Tensor:
    """Samples 2k and 2k + 1 of a batch change places: (N, ...), N even."""
    return latent[torch.arange(len(latent), device=latent.device) ^ 1]


def mismatched(batch: int, share: float, device: torch.device | None = None) -> Tensor:
    """Where `mix_and_match` replaces a sample: (batch,) bool, true in round(batch share) evenly spaced rows."""
    steps = torch.arange(batch + 1, device=device, dtype=torch.float64) * share
    return steps.add(0.5).floor().diff() > 0


def mix_and_match(generated: Tensor, other: Tensor, replaced: Tensor) -> Tensor:
    """The fakes shown to D: some generated latents give way to real ones that belong to another pair.

    A real latent under the noise and prompt of its neighbour is sharp but wrong: D has to read z and c to see it.

    Args:
        generated, other: (N, C, H, W), of the student and of the other pairs.
        replaced: (N,) bool.
    """
    return torch.where(replaced[:, None, None, None], other, generated)


def balance(regression: Tensor, adversarial: Tensor) -> Tensor:
    """|grad L_reg| / |grad L_GAN|, the weight that gives both losses the same say (Esser et al. 2021, eq. 7).

    Args:
        regression, adversarial: squared norms of the gradients at the generator's output: ().

    Returns:
        (), at most 1e4.
    """
    return (regression.sqrt() / (adversarial.sqrt() + 1e-8)).clamp(max=1e4)
