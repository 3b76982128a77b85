"""Guidance towards the prompt: how a network is guided, and the equation of classifier-free guidance."""

from torch import Tensor

from diffgan.errors import UserError

# As manifests name them: with an unconditional half; by an input of a guidance-distilled network; not at all.
CLASSIFIER_FREE_GUIDANCE, EMBEDDED_GUIDANCE, NO_GUIDANCE = "cfg", "embedded", "none"


def classifier_free(unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
    """eps(z) + w (eps(z, c) - eps(z)) (Ho & Salimans 2022, arXiv 2207.12598).

    w multiplies the difference, and with it the rounding of 16 bits: give tensors in float32.

    Args:
        unconditional, conditional: predictions, (N, C, H, W).
        guidance: w.
    """
    return unconditional + guidance * (conditional - unconditional)


def check_guidance(kind: str, guidance: float, pipeline: str) -> None:
    """Raise a UserError if a network that cannot be guided is given another guidance than 1.

    Args:
        kind: of the network's guidance.
        pipeline: name of the pipeline's class, for the message.
    """
    if kind == NO_GUIDANCE and guidance != 1:
        raise UserError(f"guidance: {guidance} for a {pipeline} that was distilled without guidance; set it to 1")
