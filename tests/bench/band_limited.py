"""Resampling between low-pass filters at twice the resolution (ADA) against one bilinear resampling.

Both reconstruct glyph latents from the same noise; reported are the final error of the latent and the seconds.
"""

from functools import partial

import torch
from torch import Tensor

from diffgan import ELatentLPIPS
from diffgan.cli.reconstruct import load_images
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.perceptual.reconstruction import reconstruct_latent
from diffgan.plots import Curve
from diffgan.storage.embedded import embedded
from diffgan.teachers.autoencoders import Encoder
from tests.bench.overhead import seconds
from tests.bench.perceptual import up_warp_down

COUNT, STEPS, RATE = 6, 400, 0.05


class BandLimited(ELatentLPIPS):
    """The same transforms, resampled as ADA does."""

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        theta = self.ensemble.draw_affine(len(generated), generated.shape[-1], generator)
        return LatentLPIPS.forward(self, up_warp_down(generated, theta), up_warp_down(target.detach(), theta))


def reconstruct(distance: ELatentLPIPS, start: Tensor, target: Tensor, curve: Curve) -> None:
    """Append to `curve` the points (step, error of the latent) of one reconstruction."""
    curve.extend(reconstruct_latent(distance, start, target, STEPS, RATE, "")[1])


def main() -> None:
    target = Encoder(str(embedded("teacher/vae")))(load_images(None, COUNT))
    for groups in ("b", "bg"):
        for kind in (ELatentLPIPS, BandLimited):
            torch.manual_seed(0)
            start, curve = torch.randn(target.shape), []
            distance = kind("glyphs", groups)
            duration = seconds(partial(reconstruct, distance, start, target, curve))
            print(f"{groups:3} {kind.__name__:14} latent MSE {curve[-1][1]:.4f}   {duration:.1f} s", flush=True)


if __name__ == "__main__":
    main()
