"""The one-step generator: a diffusion model's network, called once at one timestep (paper, section 3.1)."""

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.nets.float32 import compute_in_float32
from diffgan.teachers.denoiser import adapter_for
from diffgan.teachers.prediction import to_x0
from diffgan.teachers.schedule import schedule_for


class OneStepGenerator(nn.Module):
    """x^ = G(z, c) = to_x0(network(z, t, c)), with t the last training timestep by default.

    Equal to one step of stock diffusers with `DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=True,
    clip_sample=False)` and guidance 1, whose table ends at t. The network is a submodule by its name in the pipeline,
    so that the weights of a Stable Diffusion student are `unet.*`.

    At an earlier timestep z, of variance 1, stands in for z_t: with prediction of epsilon an error of the network
    then counts sigma_t / alpha_t times, which on Stable Diffusion's schedule is 14.6 at t = 999 and 1.2 at t = 399
    (Yin et al. 2024, DMD2, arXiv 2405.14867, appendix F).

    Args:
        network: the denoising network; trained in place.
        scheduler: states the noise schedule: alpha_t, sigma_t and the prediction type.
        timestep: t, from 0 to the last training timestep; None: the last one.
        float32_output: under autocast the network's last block and head compute in float32.

    Raises:
        UserError: the network's or the scheduler's class is not supported, or `timestep` is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: SchedulerMixin,
        timestep: int | None = None,
        float32_output: bool = False,
    ):
        super().__init__()
        self.adapter = adapter_for(network)
        self.add_module(self.adapter.component, network)
        schedule = schedule_for(scheduler)
        self.prediction_type = schedule.prediction_type
        self.timestep = schedule.last_timestep if timestep is None else timestep
        schedule.check_timestep(self.timestep)
        self.register_buffer("alpha", schedule.alpha(self.timestep), persistent=False)  # ()
        self.register_buffer("sigma", schedule.sigma(self.timestep), persistent=False)  # ()
        if float32_output:
            for module in self.adapter.output_modules(network):
                compute_in_float32(module)

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
