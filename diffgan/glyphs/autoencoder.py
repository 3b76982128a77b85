"""Stage 1 of the glyph teacher: the autoencoder, whose latent space the other stages use."""

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
from diffgan.training.results import writes_results


def edge_error(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the horizontal and of the vertical differences of neighbouring pixels.

    image, target: (N, C, H, W) -> () float32.
    """
    right = (image - target).diff(dim=-1).abs().mean()
    down = (image - target).diff(dim=-2).abs().mean()
    return right + down


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Mean peak signal-to-noise ratio in dB: image, target (N, 3, H, W) in [-1, 1] -> () float32."""
    error = ((image.clamp(-1, 1) - target) / 2).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-10).log10()).mean()


def _sign(channel: int) -> int:
    """Sign with which a wide layer holds its colour in a channel."""
    return 1 if channel // 3 % 2 == 0 else -1


def _pass_colours(conv: nn.Conv2d, wide_in: bool, wide_out: bool) -> None:
    """Add to the random weights of `conv`, at the centre of the kernel, a path for the three colours.

    A narrow side holds colour k in channel k. A wide side holds colour k % 3 in channel k, with alternating signs: both
    signs together survive the SiLU, since silu(x) - silu(-x) = x.
    """
    path, centre = torch.zeros_like(conv.weight), conv.kernel_size[0] // 2
    for o, i in itertools.product(range(conv.out_channels), range(conv.in_channels)):
        path[o, i, centre, centre] = _path_weight(o, i, wide_in, wide_out)
    path /= path.abs().sum((1, 2, 3), keepdim=True).clamp_min(1)
    with torch.no_grad():
        conv.weight.mul_(0.3).add_(path)
        conv.bias.zero_()


def _path_weight(out_channel: int, in_channel: int, wide_in: bool, wide_out: bool) -> int:
    """Weight of the colours' path between two channels: 1, -1, or 0 if they hold no common colour."""
    holds_colour = (wide_out or out_channel < 3) and (wide_in or in_channel < 3)
    if not holds_colour or out_channel % 3 != in_channel % 3:
        return 0
    out_sign = _sign(out_channel) if wide_out else 1
    in_sign = _sign(in_channel) if wide_in else 1
    if wide_in and wide_out and out_sign != in_sign:
        return 0
    return out_sign * in_sign


def initialise_colour_path(autoencoder: AutoencoderKL, log_variance: float = -4.0) -> None:
    """Initialise an autoencoder so that colours pass through it; its residual branches are zero.

    With the random initialisation of diffusers the group norms hide the colours for thousands of steps. With this one
    the first step already reconstructs blurred images.

    Args:
        autoencoder: changed in place.
        log_variance: initial logarithm of the posterior's variance.
    """
    for module in autoencoder.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _pass_colours(module.conv_shortcut, True, True)
        elif isinstance(module, Downsample2D | Upsample2D):
            _pass_colours(module.conv, True, True)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for conv in (encoder.conv_in, decoder.conv_in):
        _pass_colours(conv, False, True)
    for conv in (encoder.conv_out, decoder.conv_out):
        _pass_colours(conv, True, False)
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        _pass_colours(conv, False, False)
    channels = autoencoder.config.latent_channels
    with torch.no_grad():
        autoencoder.quant_conv.weight[channels:] *= 0.1
        autoencoder.quant_conv.bias[channels:] = log_variance


@torch.no_grad()
def whiten(autoencoder: AutoencoderKL, images: Tensor) -> AutoencoderKL:
    """The same autoencoder with uncorrelated latent channels of mean 0 and variance 1, without unused channels.

    The new channels are the principal axes of the latent in units of the posterior's noise. Axes along which the signal
    is weaker than the noise (the KL term closed them) are omitted; the decoder ignores them. The convolutions on both
    sides of the latent absorb the map, so reconstructions do not change. A diffusion model then gives every channel the
    same weight; otherwise colour, which has a large variance, outweighs shape.

    Args:
        autoencoder: in eval mode; not changed.
        images: (N, 3, H, W) in [-1, 1], over which mean and covariance are computed.

    Returns:
        An autoencoder in eval mode with as many latent channels or fewer.
    """
    posterior = autoencoder.encode(images).latent_dist
    latent = posterior.mean.movedim(1, -1).flatten(0, -2).double()  # (positions, C)
    noise = posterior.var.movedim(1, -1).flatten(0, -2).double().mean(0).sqrt()  # (C,)
    ratio, axes = torch.linalg.eigh(torch.cov((latent / noise).T))  # signal-to-noise ratios, ascending
    ratio, axes = ratio[ratio > 1], axes[:, ratio > 1]
    to_white = (axes / ratio.sqrt()).T / noise  # (k, C)
    from_white = noise[:, None] * (axes * ratio.sqrt())  # (C, k)
    white = _with_channels(autoencoder, len(ratio))
    _join_encoder(autoencoder, white, to_white.float(), latent.mean(0).float(), -ratio.log().float())
    _join_decoder(autoencoder, white, from_white.float(), latent.mean(0).float())
    return white.eval()


def _with_channels(autoencoder: AutoencoderKL, channels: int) -> AutoencoderKL:
    """A copy with another number of latent channels; the convolutions next to the latent are random."""
    copy = AutoencoderKL.from_config({**autoencoder.config, "latent_channels": channels})
    next_to_latent = ("encoder.conv_out.", "quant_conv.", "post_quant_conv.", "decoder.conv_in.")
    state = autoencoder.state_dict()
    copy.load_state_dict({name: state[name] for name in state if not name.startswith(next_to_latent)}, strict=False)
    return copy


def _join_encoder(old: AutoencoderKL, new: AutoencoderKL, to_white: Tensor, mean: Tensor, log_variance: Tensor) -> None:
    """Let the encoder of `new` give the mean to_white (m - mean) and a constant log variance.

    Args:
        old, new: autoencoders with C and k latent channels.
        to_white: (k, C).
        mean: (C,) mean of the latent.
        log_variance: (k,).

    The whole map is in `encoder.conv_out`; `quant_conv` becomes the identity.
    """
    channels, k = len(mean), len(to_white)
    quant = old.quant_conv.weight[:channels, :, 0, 0]  # (C, 2C)
    new.encoder.conv_out.weight.zero_()
    new.encoder.conv_out.weight[:k] = torch.einsum("kc,cm,mihw->kihw", to_white, quant, old.encoder.conv_out.weight)
    bias = quant @ old.encoder.conv_out.bias + old.quant_conv.bias[:channels]
    new.encoder.conv_out.bias[:k] = to_white @ (bias - mean)
    new.encoder.conv_out.bias[k:] = log_variance
    nn.init.dirac_(new.quant_conv.weight)
    nn.init.zeros_(new.quant_conv.bias)


def _join_decoder(old: AutoencoderKL, new: AutoencoderKL, from_white: Tensor, mean: Tensor) -> None:
    """Let the decoder of `new` undo the map, from_white (C, k) and the mean (C,) of the latent.

    The linear part is in `decoder.conv_in`, the shift in `post_quant_conv`, before the padding, so that borders do not
    change.
    """
    post = old.post_quant_conv.weight[:, :, 0, 0]  # (C, C)
    linear, constant = post @ from_white, post @ mean + old.post_quant_conv.bias  # (C, k), (C,)
    shift = torch.linalg.lstsq(linear, constant[:, None]).solution[:, 0]  # (k,)
    rest = constant - linear @ shift
    nn.init.dirac_(new.post_quant_conv.weight)
    new.post_quant_conv.bias.copy_(shift)
    conv = old.decoder.conv_in
    new.decoder.conv_in.weight.copy_(torch.einsum("ochw,ck->okhw", conv.weight, linear))
    new.decoder.conv_in.bias.copy_(conv.bias + torch.einsum("ochw,c->o", conv.weight, rest))


class AutoencoderTraining(pl.LightningModule):
    """Train an `AutoencoderKL` on images in [-1, 1]; write it, whitened, to `<pipeline>/vae` at the end.

    The loss is L1 + L2, plus the L1 error of edges, plus a small KL term.

    Args:
        autoencoder: arguments of `AutoencoderKL`.
        pipeline: directory of the pipeline that the stages build.
        optimizer: called with the parameters.
        steps: length of the cosine schedule.
        warmup: length of its linear warm-up, in steps.
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
        initialise_colour_path(self.autoencoder)
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
        if not writes_results(self.trainer):
            return
        images = torch.cat([batch.image for batch in self.trainer.datamodule.val_dataloader()])[:512]
        whiten(self.autoencoder.eval(), images.to(self.device)).save_pretrained(self.pipeline / "vae")
