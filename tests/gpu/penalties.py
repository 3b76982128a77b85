"""Part 3: the gradient penalty exact and by finite differences, and the rounding error of bfloat16 in x^."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffgan.losses.gradient_penalty import METHODS, full_precision, r1_loss
from diffgan.methods.rounding import bf16_rms
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.nets.generator import OneStepGenerator
from tests.gpu.networks import SD15, SDXL, random_conditioning, random_latents, random_teacher
from tests.gpu.parts import Cell, Setting
from tests.gpu.timing import median_seconds, peak_gb, reset_peak

GAMMA, ROUNDS, ROUNDED = 160.0, 2, 4
EXACT, FINITE_DIFFERENCE = "exact", "finite_difference"


def cells(setting: Setting) -> list[Cell]:
    """The penalties of both discriminators, then the rounding errors."""
    penalties = [(SD15, EXACT), (SD15, FINITE_DIFFERENCE), (SDXL, FINITE_DIFFERENCE), (SDXL, EXACT)]
    return [
        *(Cell(f"{name}, R1 {method}", partial(penalty, setting, name, method)) for name, method in penalties[:2]),
        *(Cell(f"sd15, x^ at t = {t}", partial(rounding, setting, t)) for t in (999, 399)),
        *(Cell(f"{name}, R1 {method}", partial(penalty, setting, name, method)) for name, method in penalties[2:]),
    ]


def penalty(setting: Setting, name: str, method: str) -> dict[str, Any]:
    """One sample's penalty: memory above weights and gradients, time, and the gradient beside the exact one."""
    discriminator, sample = setting.once(f"{name} discriminator", lambda: _discriminator_and_sample(setting, name))
    r1 = METHODS[method]

    def compute() -> None:
        discriminator.zero_grad()
        with full_precision(setting.device, r1.second_derivatives):
            r1_loss(r1, discriminator, *sample, GAMMA).loss.backward()

    before = reset_peak(setting.device)
    seconds = median_seconds(compute, setting.device, ROUNDS)
    values = {"GB above weights": peak_gb(setting.device, before), "peak GB": peak_gb(setting.device)}
    values |= {"ms": 1000 * seconds} | _compared(setting, name, discriminator)
    discriminator.zero_grad()
    return values


def _discriminator_and_sample(setting: Setting, name: str) -> tuple[nn.Module, tuple]:
    """D with checkpointing as in the recipes, and one sample of its inputs on the device; other networks are freed."""
    setting.clear()
    teacher = random_teacher(setting, name)
    discriminator = MultiScaleDiscriminator(teacher.denoiser).to(setting.device)
    discriminator.enable_gradient_checkpointing()
    latent, noise = (random_latents(teacher, 1, setting.device) for _ in range(2))
    return discriminator, (latent, noise, random_conditioning(teacher, 1, setting.device))


def _compared(setting: Setting, name: str, discriminator: nn.Module) -> dict[str, float]:
    """Cosine and ratio of norms of the gradient and that of the other method, if it was computed."""
    gradient = [weight.grad for weight in discriminator.parameters()]
    own, before = _dot(gradient, gradient), setting.shared.pop(f"{name} gradient", None)
    if before is None:  # kept on the host: it is no part of the other method's memory
        on_host = [None if each is None else each.cpu() for each in gradient]
        setting.shared[f"{name} gradient"] = on_host, own
        return {}
    other, others = before
    product = _dot(gradient, other)
    return {"cosine": product / (own * others) ** 0.5, "norm ratio": (own / others) ** 0.5}


def _dot(first: list[Tensor | None], second: list[Tensor | None]) -> float:
    """Sum of the products; weights without a gradient (None) count as zero."""
    pairs = [(a, b.to(a.device)) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return torch.stack([(a.double() * b.double()).sum() for a, b in pairs]).sum().item()


def rounding(setting: Setting, timestep: int) -> dict[str, Any]:
    """rms(x^ bf16 - x^ fp32) of an untrained student with random weights, and what computing its head in fp32 gains."""
    teacher = setting.once("sd15 teacher", lambda: random_teacher(setting, SD15))
    noise = random_latents(teacher, ROUNDED, setting.device)
    conditioning = random_conditioning(teacher, ROUNDED, setting.device)
    values = {}
    for float32_output in (False, True):
        network = copy.deepcopy(teacher.denoiser)
        student = OneStepGenerator(network, teacher.scheduler, timestep, float32_output).to(setting.device)
        values["rms, head in fp32" if float32_output else "rms"] = bf16_rms(student, noise, conditioning).item()
    with torch.no_grad():
        values["rms of x^"] = student(noise, conditioning).square().mean().sqrt().item()
    return values
