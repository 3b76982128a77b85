"""VGG16 on latents: the features that the latent perceptual distance compares."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from diffgan.errors import UserError

# Width and number of convolutions of VGG16's five stages (Simonyan and Zisserman 2015, configuration D).
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
LEFT_OUT = 3  # max-pools: a latent is already 8 times smaller than its image (paper, section 3.2)
NORMS = ("batch", "group", "none")
TAPS = ("relu", "pool")
GROUPS = 8


class LatentVGG16(nn.Module):
    """VGG16 on latents, its first max-pools left out; five taps, one at the end of each stage.

    Args:
        channels: channels of the latent.
        width: factor on VGG16's channel counts.
        norm: "batch" (VGG16-BN), "group" (for small batches and many processes), or "none": what batch norm folded
            into the convolutions leaves, see `folded`.
        taps: "relu", as LPIPS taps VGG; or "pool": after the max-pools that are left, as the authors' package does.
        left_out: how many of the five max-pools are left out, from the first; 0 for pixels.
    """

    def __init__(
        self, channels: int, width: float = 1.0, norm: str = "batch", taps: str = "relu", left_out: int = LEFT_OUT
    ):
        super().__init__()
        if norm not in NORMS or taps not in TAPS:
            raise UserError(f"LatentVGG16: norm {norm!r} is none of {NORMS} or taps {taps!r} none of {TAPS}")
        self.channels, self.width, self.norm, self.taps, self.left_out = channels, width, norm, taps, left_out
        self.recompute = False  # activations of a stage are computed again in the backward pass instead of kept
        self.pool = nn.MaxPool2d(2)
        self.stages = nn.ModuleList()
        for full, convolutions in STAGES:
            after = self._channels(full)
            before = [channels, *[after] * (convolutions - 1)]
            self.stages.append(nn.Sequential(*(layer for n in before for layer in self._convolution(n, after))))
            channels = after

    @property
    def tap_channels(self) -> list[int]:
        """Channels of the five taps."""
        return [self._channels(full) for full, _ in STAGES]

    def _channels(self, full: int) -> int:
        unit = GROUPS if self.norm == "group" else 1
        return max(1, round(full * self.width / unit)) * unit

    def _convolution(self, before: int, after: int) -> list[nn.Module]:
        norms = {"batch": lambda: [nn.BatchNorm2d(after)], "group": lambda: [nn.GroupNorm(GROUPS, after)]}
        normalise = norms.get(self.norm, list)()
        return [nn.Conv2d(before, after, 3, padding=1, bias=not normalise), *normalise, nn.ReLU(inplace=True)]

    def forward(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> five feature maps; with three pools left out only the last is smaller, half."""
        taps = []
        for index, stage in enumerate(self.stages):
            latent = tap = checkpoint(stage, latent, use_reentrant=False) if self.recompute else stage(latent)
            if index >= self.left_out and (self.taps == "pool" or index + 1 < len(self.stages)):
                latent = self.pool(latent)
            taps.append(latent if self.taps == "pool" else tap)
        return taps


@torch.no_grad()
def folded(network: LatentVGG16) -> LatentVGG16:
    """The same function in eval mode with batch norm folded into the convolutions; others are returned as they are."""
    if network.norm != "batch":
        return network
    plain = LatentVGG16(network.channels, network.width, "none", network.taps, network.left_out)
    for source, target in zip(network.stages, plain.stages, strict=True):
        convolutions = [layer for layer in target if isinstance(layer, nn.Conv2d)]
        for convolution, (conv, norm) in zip(convolutions, normed_convolutions(source), strict=True):
            _fold(conv, norm, convolution)
    return plain.eval()


def normed_convolutions(stage: nn.Sequential) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions of a stage, each with the batch norm that follows it."""
    return [(a, b) for a, b in pairwise(stage) if isinstance(b, nn.BatchNorm2d)]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, target: nn.Conv2d) -> None:
    """Writes into `target` the convolution that equals `norm` after `conv`, computed in float64."""
    bias = None if conv.bias is None else conv.bias.double()
    statistics = (norm.running_mean.double(), norm.running_var.double(), norm.eps)
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, *statistics, norm.weight.double(), norm.bias.double()
    )
    target.weight.copy_(weight)
    target.bias.copy_(bias)
