"""From a network's output to x0, the clean latent: one equation for each prediction type.

The noisy latent is z_t = alpha_t x0 + sigma_t eps. Stable Diffusion has alpha_t^2 + sigma_t^2 = 1, flow matching
alpha_t + sigma_t = 1; epsilon and sample depend on neither.

A family with another prediction type adds its equation to `EQUATIONS` in its own file.
"""

from collections.abc import Callable

from torch import Tensor


def x0_from_epsilon(epsilon: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = (z - sigma eps) / alpha (Ho et al. 2020, arXiv 2006.11239, equation 15)."""
    return (z - sigma * epsilon) / alpha


def x0_from_v(v: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = alpha z - sigma v, for v = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D)."""
    return alpha * z - sigma * v


def x0_from_sample(sample: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 is the output itself."""
    return sample


def x0_from_flow(v: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 = z - sigma v, for v = eps - x0 and alpha = 1 - sigma (Esser et al. 2024, arXiv 2403.03206, section 2)."""
    return z - sigma * v


EQUATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {  # named as `prediction_type` in diffusers
    "epsilon": x0_from_epsilon,
    "v_prediction": x0_from_v,
    "sample": x0_from_sample,
    "flow_prediction": x0_from_flow,
}


def to_x0(prediction: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """The clean latent that a network's output stands for.

    Args:
        prediction: the network's output at z, (N, C, H, W). Under autocast its precision may be below that of z.
        z: the noisy latent, (N, C, H, W).
        alpha: alpha_t, broadcastable to z.
        sigma: sigma_t, broadcastable to z.
        prediction_type: a key of `EQUATIONS`.

    Returns:
        x0, (N, C, H, W), in the precision of z.

    Raises:
        ValueError: `prediction_type` is not known.
    """
    if prediction_type not in EQUATIONS:
        raise ValueError(f"prediction_type {prediction_type!r} is not one of {', '.join(EQUATIONS)}")
    return EQUATIONS[prediction_type](prediction.to(z.dtype), z, alpha, sigma)
