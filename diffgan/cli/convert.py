"""The verb `convert`: the authors' weights of E-LatentLPIPS as a weight file of this project."""

from pathlib import Path

from diffgan.errors import UserError
from diffgan.perceptual.official import load_official
from diffgan.perceptual.weights import save_weights
from diffgan.storage.outputs import require_file_place


def convert(checkpoint: Path, output: Path, latents: str) -> None:
    """Convert a checkpoint of the `elatentlpips` package to a weight file of ELatentLPIPS with equal distances.

    Args:
        checkpoint: file of the package, e.g. `sd15_latest_vgg16_tuned.pth`; only tensors are read from it.
        output: file to write (safetensors); must not exist.
        latents: latent space of the checkpoint: sd15, sd21, sdxl, sd3 or flux.

    Raises:
        UserError: an unknown latent space, an existing output, or a file that is no such checkpoint.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; choose another name")
    require_file_place(output)
    save_weights(output, load_official(checkpoint, latents))
