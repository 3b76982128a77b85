"""How much the generated latents of bfloat16 differ from those of float32."""

import torch
from torch import Tensor, nn

from diffgan.conditioning import Conditioning


@torch.no_grad()
def bf16_rms(generator: nn.Module, noise: Tensor, conditioning: Conditioning) -> Tensor:
    """rms(x^ in bfloat16 autocast - x^ in float32), the root mean square over all values.

    A discriminator can use this error as a cue, because real latents lack it. Eager mode: another batch size and
    precision would be compiled anew.

    Args:
        generator: G (collective if its weights are sharded).
        noise: z, (N, C, H, W) float32.
        conditioning: c, N rows.

    Returns:
        () float32.
    """
    device, conditioning = noise.device.type, conditioning.map(Tensor.float)
    with torch.compiler.set_stance("force_eager"):
        with torch.autocast(device, enabled=False):
            exact = generator(noise, conditioning)  # (N, C, H, W)
        with torch.autocast(device, dtype=torch.bfloat16):
            rounded = generator(noise, conditioning)  # (N, C, H, W)
    return (rounded - exact).square().mean().sqrt()
