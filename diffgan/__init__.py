"""diffgan: distill a latent diffusion model into a one-step conditional GAN.

The perceptual distances `ELatentLPIPS` and `LatentLPIPS` are useful on their own. Importing them loads, of the
dependencies, torch, safetensors and numpy alone, and downloads nothing.
"""

from typing import Any

__all__ = ["ELatentLPIPS", "LatentLPIPS"]


def __getattr__(name: str) -> Any:
    """Import the perceptual distances on first use, so that `import diffgan` does not import torch."""
    if name in __all__:
        from diffgan.perceptual import lpips

        return getattr(lpips, name)
    raise AttributeError(f"module 'diffgan' has no attribute {name!r}")
