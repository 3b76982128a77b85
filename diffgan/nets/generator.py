"""The one-step generator: a diffusion model's network, called once at the last timestep (paper, section 3.1)."""

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.teachers.denoiser import adapter_for
from diffgan.teachers.prediction import to_x0
from diffgan.teachers.schedule import schedule_for


class OneStepGenerator(nn.Module):
    """x^ = G(z, c) = to_x0(network(z, T, c)), with T the last training timestep.

    Equal to one step of stock diffusers with `DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=True,
    clip_sample=False)` and guidance 1. The network is a submodule by its name in the pipeline, so that the weights of
    a Stable Diffusion student are `unet.*`.

    Args:
        network: the denoising network; trained in place.
        scheduler: states the noise schedule: T, alpha_T, sigma_T and the prediction type.

    Raises:
        UserError: the network's or the scheduler's class is not supported.
    """

    def __init__(self, network: nn.Module, scheduler: SchedulerMixin):
        super().__init__()
        self.adapter = adapter_for(network)
        self.add_module(self.adapter.component, network)
        schedule = schedule_for(scheduler)
        self.prediction_type = schedule.prediction_type
        self.timestep = schedule.last_timestep
        self.register_buffer("alpha", schedule.alpha(self.timestep), persistent=False)  # ()
        self.register_buffer("sigma", schedule.sigma(self.timestep), persistent=False)  # ()

    @property
    def denoiser(self) -> nn.Module:
        """The network."""
        return getattr(self, self.adapter.component)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding."""
        return self.adapter.blocks(self.denoiser)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.adapter.enable_gradient_checkpointing(self.denoiser)

    def forward(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Generate latents.

        Args:
            noise: z, (N, C, H, W), N(0, I).
            conditioning: c, N rows.

        Returns:
            x^, (N, C, H, W), in the precision of `noise`.
        """
        t = torch.full((len(noise),), self.timestep, device=noise.device)  # (N,)
        prediction = self.adapter.predict(self.denoiser, noise, t, conditioning)  # (N, C, H, W)
        return to_x0(prediction, noise, self.alpha, self.sigma, self.prediction_type)  # (N, C, H, W)
