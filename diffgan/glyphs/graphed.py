"""A denoiser as one CUDA graph: a small network's kernels are shorter than the time it takes to launch them."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class Velocity(nn.Module):
    """A UNet as a function of tensors alone."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """noisy: (N, C, H, W); t: (N,) int64; text: (N, tokens, features) -> the prediction, (N, C, H, W)."""
        return self.unet(noisy, t, encoder_hidden_states=text, return_dict=False)[0]


def graphed(unet: UNet2DConditionModel, batch_size: int, tokens: int) -> Velocity:
    """The UNet with its forward and its backward pass recorded as CUDA graphs.

    The graphs read and write the UNet's own weights, so an optimizer may change them in place.

    Args:
        unet: on a CUDA device, in training mode.
        batch_size: of every later call.
        tokens: of a text.
    """
    size, device = unet.config.sample_size, unet.device
    noisy = torch.zeros(batch_size, unet.config.in_channels, size, size, device=device)
    noisy = noisy.to(memory_format=torch.channels_last)
    t = torch.zeros(batch_size, dtype=torch.int64, device=device)
    text = torch.zeros(batch_size, tokens, unet.config.cross_attention_dim, device=device)
    # Graphs are recorded on a stream of their own, and replayed on another one; torch would warn of that.
    warn = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)  # not in torch 2.10
    if warn is not None:
        warn(False)
    return torch.cuda.make_graphed_callables(Velocity(unet), (noisy, t, text))
