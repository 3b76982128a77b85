"""What resampling between low-pass filters at twice the resolution (ADA) buys over one bilinear resampling.

Reconstruction of glyph latents from noise under both, same seeds: final error of the latent, seconds.
"""

import torch
from torch import Tensor

from diffgan import ELatentLPIPS
from diffgan.cli.reconstruct import GLYPH_SEED, descend
from diffgan.glyphs.recipe import describe, paint
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.storage.embedded import embedded
from diffgan.teachers.autoencoders import Encoder
from tests.bench.overhead import seconds
from tests.bench.perceptual import up_warp_down

COUNT, STEPS, RATE = 6, 400, 0.05


class BandLimited(ELatentLPIPS):
    """The same transforms, resampled as ADA does."""

    def forward(self, generated: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        theta = self.ensemble._affine(len(generated), generated.shape[-1], generator)
        return LatentLPIPS.forward(self, up_warp_down(generated, theta), up_warp_down(target.detach(), theta))


def main() -> None:
    target = Encoder(str(embedded("teacher/vae")))(paint("reference", describe("reference", GLYPH_SEED, range(COUNT))))
    for groups in ("b", "bg"):
        for kind in (ELatentLPIPS, BandLimited):
            torch.manual_seed(0)
            start, curve = torch.randn(target.shape), []
            distance = kind("glyphs", groups)
            run = lambda: curve.extend(descend(distance, start, target, STEPS, RATE, "")[1])  # noqa: B023, E731
            duration = seconds(run)
            print(f"{groups:3} {kind.__name__:14} latent MSE {curve[-1][1]:.4f}   {duration:.1f} s", flush=True)


if __name__ == "__main__":
    main()
