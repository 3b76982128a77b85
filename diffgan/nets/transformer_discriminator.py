"""The conditional discriminator of diffusion transformers: a second copy of the teacher's network, read at some depths.

The paper's discriminator is a UNet, read at every scale (`discriminator.py`). A transformer has one scale: it is read
at several depths instead, z joins x as further channels of each patch, and the text is seen through the network's own
attention.
"""

import torch
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.nets.lora import LoRA, copied_network, freeze_shared
from diffgan.nets.read_outs import Discriminator, ReadOut
from diffgan.teachers.denoiser import adapter_for
from diffgan.teachers.transformer import TransformerAdapter


class TransformerDiscriminator(Discriminator):
    """D(x, z, c): maps of real/fake logits at some depths of a diffusion transformer.

    The network is called at t = 0 on x, with z as further channels of its patches whose weights are zero at first: D
    begins with the features of `transformer`. A head reads the image's tokens after every `len(blocks) / depths`-th
    block, the last one included: the early ones see texture, the late ones layout and text.

    Args:
        transformer: the teacher's network; it is copied, not changed.
        from_teacher: initialise with the teacher's weights if true, with random weights if false.
        noise_conditioning: condition D on the noise z that the generated sample was made of.
        depths: number of heads, at most one for each block.
        lora: train adapters beside the network's weights, which are shared with `transformer`, and the layers that are
            added.

    Raises:
        UserError: `transformer` is no diffusion transformer, or has fewer blocks than `depths`.
    """

    def __init__(
        self,
        transformer: nn.Module,
        from_teacher: bool = True,
        noise_conditioning: bool = True,
        depths: int = 4,
        lora: LoRA | None = None,
    ):
        super().__init__()
        self.adapter = _transformer_adapter(transformer)
        self.transformer = copied_network(transformer, from_teacher, lora)
        self.adapter.remove_output(self.transformer)
        self.noise_conditioning = noise_conditioning
        if noise_conditioning:
            self.adapter.widen_input(self.transformer)
        read = _read_blocks(self.blocks(), depths)
        width = self.adapter.width(self.transformer)
        self.heads = nn.ModuleList(_head(width) for _ in read)
        self._features: dict[int, Tensor] | None = None  # during a forward pass: tokens by depth
        for depth, block in enumerate(read):
            block.register_forward_hook(_Keep(self, depth))
        freeze_shared(self, transformer)
        self.train()

    @property
    def sees_noise(self) -> bool:
        return self.noise_conditioning

    def blocks(self) -> list[nn.Module]:
        return self.adapter.blocks(self.transformer)

    def enable_gradient_checkpointing(self) -> None:
        self.adapter.enable_gradient_checkpointing(self.transformer)

    def forward(self, latent: Tensor, noise: Tensor, conditioning: Conditioning) -> list[ReadOut]:
        features = self.features(latent, noise, conditioning)
        heads = zip(self.heads, features, strict=True)
        return [ReadOut(depth, "after", head(feature)) for depth, (head, feature) in enumerate(heads)]

    def features(self, latent: Tensor, noise: Tensor, conditioning: Conditioning) -> list[Tensor]:
        """The image's features at each depth, the first first: (N, width, h, w); arguments as in `forward`."""
        inputs = torch.cat([latent, noise], dim=1) if self.noise_conditioning else latent  # (N, 2 C, H, W)
        self._features = {}
        try:
            self.adapter.predict(self.transformer, inputs, 0, conditioning)
            tokens = [self._features[depth] for depth in range(len(self.heads))]
        finally:
            self._features = None
        patch = self.adapter.patch(self.transformer.config)
        height, width = (side // patch for side in latent.shape[-2:])
        return [rows.transpose(1, 2).unflatten(2, (height, width)) for rows in tokens]

    def keep(self, depth: int, output: Tensor | tuple[Tensor, ...]) -> None:
        """Keep the image's tokens in the output of a block; not when checkpointing computes it again."""
        if self._features is not None:
            self._features[depth] = self.adapter.image_features(output)


class _Keep:
    """A forward hook of the block at one depth."""

    def __init__(self, discriminator: TransformerDiscriminator, depth: int):
        self.discriminator, self.depth = discriminator, depth

    def __call__(self, block: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        self.discriminator.keep(self.depth, output)


def _transformer_adapter(transformer: nn.Module) -> TransformerAdapter:
    adapter = adapter_for(transformer)
    if not isinstance(adapter, TransformerAdapter):
        raise UserError(
            f"discriminator: the teacher's network is a {type(transformer).__name__}, TransformerDiscriminator takes a "
            "diffusion transformer; for a UNet name MultiScaleDiscriminator"
        )
    return adapter


def _read_blocks(blocks: list[nn.Module], depths: int) -> list[nn.Module]:
    """`depths` of the blocks, evenly spaced, the last one included."""
    if not 1 <= depths <= len(blocks):
        raise UserError(f"discriminator: depths is {depths} and must be from 1 to {len(blocks)}, the network's blocks")
    return [blocks[(depth + 1) * len(blocks) // depths - 1] for depth in range(depths)]


def _head(width: int) -> nn.Sequential:
    """Features (N, width, h, w) -> logits (N, 1, h, w)."""
    return nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))
