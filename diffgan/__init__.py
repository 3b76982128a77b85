"""diffgan: distill a latent diffusion model into a one-step conditional GAN.

`ELatentLPIPS` and `LatentLPIPS` are of use on their own; they need torch and safetensors alone.
"""

__all__ = ["ELatentLPIPS", "LatentLPIPS"]


def __getattr__(name: str):
    if name in __all__:  # loaded on first use, so `import diffgan` stays light
        from diffgan.perceptual import lpips

        return getattr(lpips, name)
    raise AttributeError(f"module 'diffgan' has no attribute {name!r}")
