"""VGG16 on latents: the feature maps that the latent perceptual distance compares."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from diffgan.errors import UserError

# Channels and number of convolutions of VGG16's five stages (Simonyan and Zisserman 2015, configuration D).
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
OMITTED_POOLS = 3  # the latent of an autoencoder is 8 times smaller than its image already (paper, section 3.2)
NORMS = ("batch", "group", "none")
TAPS = ("relu", "pool")
NORM_GROUPS = 8  # of GroupNorm
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm  # the second by the trainer's `sync_batchnorm`


class LatentVGG16(nn.Module):
    """VGG16 on latents without its first max-pools. It has five taps (feature maps it returns), one per stage.

    Args:
        channels: channels of the latent.
        width: factor on VGG16's channel counts.
        norm: "batch" (VGG16-BN), "group" (for small batches and many processes), or "none" (batch norm folded into the
            convolutions, see `fold_batch_norm`).
        taps: "relu" for the output of a stage's last ReLU, as in LPIPS; "pool" for the output of the max-pool after
            it, where there is one, as in the authors' package.
        omitted_pools: how many of the five max-pools are omitted, from the first; 0 for pixels.

    Raises:
        UserError: `norm` or `taps` is none of the names above.
    """

    def __init__(
        self,
        channels: int,
        width: float = 1.0,
        norm: str = "batch",
        taps: str = "relu",
        omitted_pools: int = OMITTED_POOLS,
    ):
        super().__init__()
        if norm not in NORMS or taps not in TAPS:
            raise UserError(f"LatentVGG16: norm {norm!r} is none of {NORMS} or taps {taps!r} none of {TAPS}")
        self.channels, self.width, self.norm, self.taps, self.omitted_pools = channels, width, norm, taps, omitted_pools
        self.recompute = False  # compute the activations inside a stage again in the backward pass, do not keep them
        self.pool = nn.MaxPool2d(2)
        self.stages = nn.ModuleList()
        for (_, depth), out_channels in zip(STAGES, self.tap_channels, strict=True):
            self.stages.append(self._stage(channels, out_channels, depth))
            channels = out_channels

    @property
    def tap_channels(self) -> list[int]:
        """Channels of the five taps."""
        return [self._scaled(channels) for channels, _ in STAGES]

    @property
    def least_side(self) -> int:
        """The smallest height and width of an input."""
        return 2 ** sum(map(self._has_pool, range(len(STAGES))))

    def _scaled(self, channels: int) -> int:
        """`width` times the channels, rounded to a multiple that the norm can divide."""
        multiple = NORM_GROUPS if self.norm == "group" else 1
        return max(1, round(channels * self.width / multiple)) * multiple

    def _stage(self, in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
        layers = self._convolution(in_channels, out_channels)
        for _ in range(depth - 1):
            layers += self._convolution(out_channels, out_channels)
        return nn.Sequential(*layers)

    def _convolution(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        """A convolution, its norm if there is one, and a ReLU."""
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=self.norm == "none")
        if self.norm == "batch":
            return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
        if self.norm == "group":
            return [convolution, nn.GroupNorm(NORM_GROUPS, out_channels), nn.ReLU(inplace=True)]
        return [convolution, nn.ReLU(inplace=True)]

    def forward(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> five feature maps (N, tap_channels[k], H_k, W_k).

        With three pools omitted and ReLU taps the first four have the size of the latent, the last has half of it.
        """
        taps = []
        for index, stage in enumerate(self.stages):
            features = checkpoint(stage, latent, use_reentrant=False) if self.recompute else stage(latent)
            latent = self.pool(features) if self._has_pool(index) else features
            taps.append(latent if self.taps == "pool" else features)
        return taps

    def _has_pool(self, index: int) -> bool:
        """Whether a max-pool follows stage `index`; the last one matters only to pool taps."""
        is_last = index + 1 == len(self.stages)
        return index >= self.omitted_pools and (self.taps == "pool" or not is_last)


@torch.no_grad()
def fold_batch_norm(network: LatentVGG16) -> LatentVGG16:
    """The same function in eval mode, batch norm folded into the convolutions.

    A network with another norm is returned unchanged.
    """
    if network.norm != "batch":
        return network
    plain = LatentVGG16(network.channels, network.width, "none", network.taps, network.omitted_pools)
    for source, target in zip(network.stages, plain.stages, strict=True):
        convolutions = [layer for layer in target if isinstance(layer, nn.Conv2d)]
        for convolution, (conv, norm) in zip(convolutions, conv_norm_pairs(source), strict=True):
            _fold(conv, norm, convolution)
    return plain.eval()


def conv_norm_pairs(stage: nn.Sequential) -> list[tuple[nn.Conv2d, BatchNorm]]:
    """The convolutions of a stage, each with the batch norm that follows it."""
    return [(layer, following) for layer, following in pairwise(stage) if isinstance(following, BatchNorm)]


def _fold(conv: nn.Conv2d, norm: BatchNorm, target: nn.Conv2d) -> None:
    """Write into `target` the convolution that equals `norm` after `conv`, computed in float64."""
    bias = None if conv.bias is None else conv.bias.double()
    statistics = (norm.running_mean.double(), norm.running_var.double(), norm.eps)
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, *statistics, norm.weight.double(), norm.bias.double()
    )
    target.weight.copy_(weight)
    target.bias.copy_(bias)
