"""The one-step generator: a diffusion model's network, called once at the last timestep."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.teachers import denoiser


def clean_latent(prediction: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """x^ from the network's prediction at z = alpha x + sigma eps: all (N, C, H, W), alpha and sigma scalars.

    epsilon: (z - sigma eps) / alpha;  v_prediction: alpha z - sigma v;  sample: the prediction itself.
    """
    prediction = prediction.to(noise.dtype)  # under autocast it comes in less than the noise's precision
    if prediction_type == "epsilon":
        return (noise - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * prediction
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"prediction_type {prediction_type!r} is none of epsilon, v_prediction, sample")


class OneStepGenerator(nn.Module):
    """x^ = G(z, c): one network call at the schedule's last timestep T (paper, section 3.1).

    Equal to one step of stock diffusers with `DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=True,
    clip_sample=False)` and guidance 1.

    Args:
        unet: the network; trained in place.
        scheduler: gives T, alpha_T, sigma_T and the prediction type.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler):
        super().__init__()
        self.unet = unet
        self.prediction_type = scheduler.config.prediction_type
        self.timestep = scheduler.config.num_train_timesteps - 1
        signal = scheduler.alphas_cumprod[self.timestep]
        self.register_buffer("alpha", signal.sqrt(), persistent=False)
        self.register_buffer("sigma", (1 - signal).sqrt(), persistent=False)

    def blocks(self) -> list[nn.Module]:
        """Units of sharding."""
        return denoiser.blocks(self.unet)

    def enable_gradient_checkpointing(self) -> None:
        denoiser.enable_gradient_checkpointing(self.unet)

    def forward(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """noise: (N, C, H, W), N(0, I) -> latents (N, C, H, W)."""
        t = torch.full((len(noise),), self.timestep, device=noise.device)
        prediction = denoiser.predict(self.unet, noise, t, conditioning)
        return clean_latent(prediction, noise, self.alpha, self.sigma, self.prediction_type)
