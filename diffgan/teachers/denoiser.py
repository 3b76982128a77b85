"""How a family's network is called, and which of its blocks are sharded and checkpointed. Today: UNets of diffusers."""

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffgan.conditioning import Conditioning


def predict(network: UNet2DConditionModel, latent: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
    """The network's output at latents (N, C, H, W) and timestep t, () or (N,): (N, C, H, W)."""
    return network(latent, t, **conditioning.arguments(), return_dict=False)[0]


def blocks(network: UNet2DConditionModel) -> list[nn.Module]:
    """The stages of the network, in the order of the forward pass: units of sharding (FSDP2)."""
    stages = (*network.down_blocks, network.mid_block, *network.up_blocks)
    return [stage for stage in stages if stage is not None]


def enable_gradient_checkpointing(network: UNet2DConditionModel) -> None:
    """Compute the activations of every block again in the backward pass instead of keeping them."""
    network.enable_gradient_checkpointing()
