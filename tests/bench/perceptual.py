"""E-LatentLPIPS against a plain transcription of its formula: time and peak memory of forward and backward pass.

Both take turns in one process, with VGG16-BN of full width and seeded weights on batches of 4 latents of 64x64, with 4
and 16 channels. The transcription follows the formula step by step: each input is augmented separately (upsampled,
warped, downsampled), passes the network separately with its batch norms, and is normalised separately. The lower bound
is the time of the convolutions alone: forward for the target, forward and backward for the generated latents.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diffgan import ELatentLPIPS
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.ensemble import Ensemble
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from tests.bench.overhead import seconds

BATCH, SIDE, ROUNDS = 4, 64, 5


class Transcription(nn.Module):
    """The formula, step by step."""

    def __init__(self, network: LatentVGG16):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.ensemble = Ensemble("bg")

    def forward(self, generated: Tensor, target: Tensor) -> Tensor:
        theta = self.ensemble.draw_affine(len(generated), generated.shape[-1])
        x, y = (up_warp_down(latent, theta) for latent in (generated, target))
        distance = torch.zeros(len(x))
        for f, g in zip(self.network(x), self.network(y), strict=True):
            u, v = (tap / (torch.linalg.vector_norm(tap, dim=1, keepdim=True) + 1e-10) for tap in (f, g))
            distance = distance + F.conv2d((u - v) ** 2, torch.ones(1, u.shape[1], 1, 1)).mean((1, 2, 3))
        return distance


def up_warp_down(images: Tensor, theta: Tensor) -> Tensor:
    """Resampling at twice the resolution between two low-pass filters of 12 coefficients."""
    channels, positions = images.shape[1], torch.arange(-5.5, 6)
    kernel = torch.sinc(positions / 2) * torch.hann_window(14, periodic=False)[1:-1]
    kernel = kernel / kernel.sum()
    filters = (kernel[:, None] * kernel[None, :]).expand(channels, 1, 12, 12).contiguous()
    images = F.pad(images, [8] * 4, mode="reflect")
    large = 4 * F.conv_transpose2d(images, filters, stride=2, groups=channels, padding=5)
    warped = F.grid_sample(large, F.affine_grid(theta, list(large.shape), align_corners=False), align_corners=False)
    return F.conv2d(warped, filters, stride=2, groups=channels, padding=5)[..., 8:-8, 8:-8]


def peak_bytes(run: Callable[[], None]) -> int:
    """Largest sum of the live allocations of `run`, in bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def step(distance: nn.Module, generated: Tensor, target: Tensor) -> None:
    """Forward and backward pass of a distance."""
    torch.autograd.grad(distance(generated, target).sum(), generated)


def convolutions(network: LatentVGG16, generated: Tensor, target: Tensor) -> None:
    """The passes of the network alone."""
    with torch.no_grad():
        network(target)
    last = network(generated)[-1]
    torch.autograd.grad(last.sum(), generated)


def seeded_distance(network: LatentVGG16, ensemble: str = "bg") -> ELatentLPIPS:
    """ELatentLPIPS of a network, through its weight file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_weights(file, PerceptualWeights(network, LatentSpace(network.channels, 8, 1.0)))
        return ELatentLPIPS(file, ensemble)


def compare(channels: int, device: str) -> None:
    """Measure the three and print their ratios."""
    torch.manual_seed(0)
    network = LatentVGG16(channels)
    distance, plain = seeded_distance(network).to(device), Transcription(network).to(device)
    generated = torch.randn(BATCH, channels, SIDE, SIDE, device=device, requires_grad=True)
    target = torch.randn(BATCH, channels, SIDE, SIDE, device=device)
    channels_last = {"memory_format": torch.channels_last}
    fast_generated = generated.detach().to(**channels_last).requires_grad_(True)
    runs = {
        "plain transcription": partial(step, plain, generated, target),
        "ELatentLPIPS": partial(step, distance, generated, target),
        "its convolutions alone": partial(convolutions, distance.network, fast_generated, target.to(**channels_last)),
    }
    times = alternate(runs)
    report(channels, {name: (statistics.median(times[name]), peak_bytes(run)) for name, run in runs.items()})


def alternate(runs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each run in ROUNDS rounds, after one round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS + 1):
        for name, run in runs.items():
            duration = seconds(run)
            if round_:
                times[name].append(duration)
    return times


def report(channels: int, results: dict[str, tuple[float, int]]) -> None:
    """Print seconds and bytes of each, and the ratios of the plain transcription's to them."""
    print(
        f"{channels}x{SIDE}x{SIDE}, batch {BATCH}, forward + backward   seconds      peak MB   plain/this time   memory"
    )
    plain_time, plain_memory = results["plain transcription"]
    for name, (time, memory) in results.items():
        ratios = f"{plain_time / time:17.2f} {plain_memory / memory:8.2f}"
        print(f"  {name:36} {time:8.3f} {memory / 2**20:12.0f} {ratios}", flush=True)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for channels in (4, 16):
        compare(channels, device)


if __name__ == "__main__":
    main()
