"""Stage 1 of the glyph teacher: the autoencoder whose latents everything else lives in."""

import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.glyphs.networks import from_config
from diffgan.training.lr_schedules import warmup_cosine


def edge_error(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the horizontal and vertical differences of neighbouring pixels: () float32."""
    right = (image - target).diff(dim=-1).abs().mean()
    down = (image - target).diff(dim=-2).abs().mean()
    return right + down


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Mean peak signal-to-noise ratio in dB of images (N, 3, H, W) in [-1, 1]."""
    error = ((image.clamp(-1, 1) - target) / 2).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-10).log10()).mean()


def _sign(channel: int) -> int:
    return 1 if channel // 3 % 2 == 0 else -1


def _carry(conv: nn.Conv2d, wide_in: bool, wide_out: bool) -> None:
    """Let `conv` carry three colours through its centre tap, on top of its random weights.

    A narrow side holds colour k in channel k; a wide one holds colour k % 3, with alternating sign, in channel k, so
    that an odd-even split like SiLU's (silu(x) - silu(-x) = x) keeps it.
    """
    path, centre = torch.zeros_like(conv.weight), conv.kernel_size[0] // 2
    for o, i in itertools.product(range(conv.out_channels), range(conv.in_channels)):
        used = (wide_out or o < 3) and (wide_in or i < 3)
        if used and o % 3 == i % 3 and not (wide_in and wide_out and _sign(o) != _sign(i)):
            path[o, i, centre, centre] = (_sign(o) if wide_out else 1) * (_sign(i) if wide_in else 1)
    path /= path.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)
    with torch.no_grad():
        conv.weight.mul_(0.3).add_(path)
        conv.bias.zero_()


def carry_colours(autoencoder: AutoencoderKL, log_variance: float = -4.0) -> None:
    """Initialise so that colours pass from end to end: residual branches start at zero, other convolutions carry.

    From diffusers' random start the group norms hide colour for thousands of steps; from this one the first step
    already reconstructs blurred pictures. The posterior's variance starts at exp(`log_variance`).
    """
    for module in autoencoder.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, True, True)
        elif isinstance(module, Downsample2D | Upsample2D):
            _carry(module.conv, True, True)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for conv in (encoder.conv_in, decoder.conv_in):
        _carry(conv, False, True)
    for conv in (encoder.conv_out, decoder.conv_out):
        _carry(conv, True, False)
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        _carry(conv, False, False)
    channels = autoencoder.config.latent_channels
    with torch.no_grad():
        autoencoder.quant_conv.weight[channels:] *= 0.1
        autoencoder.quant_conv.bias[channels:] = log_variance


@torch.no_grad()
def whiten(autoencoder: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """The same autoencoder with uncorrelated latent channels of mean 0, variance 1 over `images`, dead ones left out.

    The channels are the principal axes of the latent in units of the posterior's noise. Along some the signal may be
    weaker than the noise (the KL term closed them): the decoder ignores those, and they go. The convolutions on both
    sides of the latent absorb the map, so reconstructions stay as they were, while a diffusion model sees every channel
    with the same weight; otherwise colour, of large variance, hides shape.
    """
    posterior = autoencoder.encode(images).latent_dist
    latent = posterior.mean.movedim(1, -1).flatten(0, -2).double()  # (positions, C)
    noise = posterior.var.movedim(1, -1).flatten(0, -2).double().mean(0).sqrt()  # (C,)
    ratio, axes = torch.linalg.eigh(torch.cov((latent / noise).T))  # signal-to-noise ratios, ascending
    ratio, axes = ratio[ratio > 1], axes[:, ratio > 1]
    inward = (axes / ratio.sqrt()).T / noise  # (k, C)
    outward = noise[:, None] * (axes * ratio.sqrt())  # (C, k)
    slim = AutoencoderKL.from_config({**autoencoder.config, "latent_channels": len(ratio)})
    seams = ("encoder.conv_out.", "quant_conv.", "post_quant_conv.", "decoder.conv_in.")
    kept = {name: w for name, w in autoencoder.state_dict().items() if not name.startswith(seams)}
    slim.load_state_dict(kept, strict=False)
    _join_encoder(autoencoder, slim, inward.float(), latent.mean(0).float(), -ratio.log().float())
    _join_decoder(autoencoder, slim, outward.float(), latent.mean(0).float())
    return slim.eval()


def _join_encoder(old: AutoencoderKL, new: AutoencoderKL, inward: Tensor, mean: Tensor, log_variance: Tensor) -> None:
    """new's moments: mean inward (m - mean), a constant log variance; `quant_conv` becomes the identity."""
    channels, k = len(mean), len(inward)
    quant = old.quant_conv.weight[:channels, :, 0, 0]  # (C, 2C)
    new.encoder.conv_out.weight.zero_()
    new.encoder.conv_out.weight[:k] = torch.einsum("kc,cm,mihw->kihw", inward, quant, old.encoder.conv_out.weight)
    bias = quant @ old.encoder.conv_out.bias + old.quant_conv.bias[:channels]
    new.encoder.conv_out.bias[:k] = inward @ (bias - mean)
    new.encoder.conv_out.bias[k:] = log_variance
    nn.init.dirac_(new.quant_conv.weight)
    nn.init.zeros_(new.quant_conv.bias)


def _join_decoder(old: AutoencoderKL, new: AutoencoderKL, outward: Tensor, mean: Tensor) -> None:
    """new's decoder undoes the map: the linear part in `conv_in`, the shift in `post_quant_conv` (so borders stay)."""
    post = old.post_quant_conv.weight[:, :, 0, 0]  # (C, C)
    linear, constant = post @ outward, post @ mean + old.post_quant_conv.bias  # (C, k), (C,)
    shift = torch.linalg.lstsq(linear, constant[:, None]).solution[:, 0]  # (k,)
    rest = constant - linear @ shift
    nn.init.dirac_(new.post_quant_conv.weight)
    new.post_quant_conv.bias.copy_(shift)
    conv = old.decoder.conv_in
    new.decoder.conv_in.weight.copy_(torch.einsum("ochw,ck->okhw", conv.weight, linear))
    new.decoder.conv_in.bias.copy_(conv.bias + torch.einsum("ochw,c->o", conv.weight, rest))


class AutoencoderTraining(pl.LightningModule):
    """Train an `AutoencoderKL` on images in [-1, 1] (L1 + L2, L1 of edges, a small KL term); write `<pipeline>/vae`.

    Args:
        autoencoder: arguments of `AutoencoderKL`.
        pipeline: directory of the pipeline in the making.
        optimizer: called with the parameters.
        steps: length of the schedule.
        warmup: steps of rising learning rate.
        kl_weight: weight of the mean KL divergence per latent element.
        edge_weight: weight of `edge_error`.
    """

    def __init__(
        self,
        autoencoder: dict[str, Any],
        pipeline: Path,
        optimizer: OptimizerCallable,
        steps: int,
        warmup: int = 100,
        kl_weight: float = 3e-4,
        edge_weight: float = 1.0,
    ):
        super().__init__()
        self.autoencoder = from_config(AutoencoderKL, autoencoder).to(memory_format=torch.channels_last)
        carry_colours(self.autoencoder)
        self.pipeline, self.optimizer, self.steps, self.warmup = pipeline, optimizer, steps, warmup
        self.kl_weight, self.edge_weight = kl_weight, edge_weight

    def configure_optimizers(self):
        optimizer = self.optimizer(self.autoencoder.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, _) -> Tensor:
        images = batch.image.to(memory_format=torch.channels_last)
        posterior = self.autoencoder.encode(images).latent_dist
        reconstruction = self.autoencoder.decode(posterior.sample()).sample
        pixel = F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)
        edge = edge_error(reconstruction, images)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        self.log_dict({"train/pixel": pixel, "train/edge": edge, "train/kl": divergence}, prog_bar=True)
        return pixel + self.edge_weight * edge + self.kl_weight * divergence

    def validation_step(self, batch, _) -> None:
        reconstruction = self.autoencoder.decode(self.autoencoder.encode(batch.image).latent_dist.mode()).sample
        self.log("validation/psnr", psnr(reconstruction, batch.image), prog_bar=True, batch_size=len(batch.image))

    def on_fit_end(self) -> None:
        if not self.trainer.is_global_zero:
            return
        images = torch.cat([batch.image for batch in self.trainer.datamodule.val_dataloader()])[:512]
        whiten(self.autoencoder.eval(), images.to(self.device)).save_pretrained(self.pipeline / "vae")
