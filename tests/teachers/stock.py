"""The stock pipeline of diffusers beside a teacher of ours, called in the same way whatever its family."""

from contextlib import contextmanager

import diffusers
import torch
from diffusers import DiffusionPipeline, FluxPipeline, PixArtSigmaPipeline
from torch import Tensor

from diffgan.teachers.schedule import SCHEDULER_SETTINGS


def load_stock(folder, teacher):
    """The pipeline in a folder; with DDIM's schedule it has the README's settings."""
    absent = {name: None for name in teacher.optional if getattr(teacher, name) is None}
    pipe = DiffusionPipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    if teacher.schedule.own_solver == "DDIMScheduler":
        pipe.scheduler = with_our_settings(pipe, "DDIMScheduler")
    return pipe


def with_our_settings(pipe, solver):
    """Stock diffusers with the README's settings: trailing spacing, last alpha 1, no clipping, PNDM as in SD1.x."""
    settings = SCHEDULER_SETTINGS | {"skip_prk_steps": True} if "FlowMatch" not in solver else {}
    return getattr(diffusers, solver).from_config(pipe.scheduler.config, **settings)


def stock_latents(pipe, prompts, noise: Tensor, steps: int, guidance: float) -> Tensor:
    """What the pipeline makes of noises (N, C, H, W): latents of the same shape."""
    latents = _call(pipe, prompts, noise, steps, guidance, "latent")
    if isinstance(pipe, FluxPipeline):
        factor = pipe.vae_scale_factor
        return pipe._unpack_latents(latents, noise.shape[2] * factor, noise.shape[3] * factor, factor)
    return latents


def stock_images(pipe, prompts, noise: Tensor, steps: int, guidance: float) -> Tensor:
    """Images (N, 3, H', W') in [0, 1]."""
    return _call(pipe, prompts, noise, steps, guidance, "pt")


def _call(pipe, prompts, noise, steps, guidance, output):
    options = {}
    if isinstance(pipe, PixArtSigmaPipeline):
        options = {"clean_caption": False, "use_resolution_binning": False}
    options |= dict(zip(("height", "width"), (side * pipe.vae_scale_factor for side in noise.shape[2:]), strict=True))
    if isinstance(pipe, FluxPipeline):
        noise = pipe._pack_latents(noise, *noise.shape)
    options |= {"num_inference_steps": steps, "guidance_scale": guidance, "latents": noise, "output_type": output}
    return pipe(prompts, **options).images


@contextmanager
def network_arguments(network):
    """A list that receives the arguments of every call of a network, by name."""
    calls, names = [], list(network.forward.__code__.co_varnames[1:])
    names = names if "hidden_states" not in names else names[names.index("hidden_states") :]

    def keep(_, args, kwargs):
        calls.append({**dict(zip(names, args, strict=False)), **kwargs})

    hook = network.register_forward_pre_hook(keep, with_kwargs=True)
    yield calls
    hook.remove()


def tensors(values, name=""):
    """{"a.b": tensor} of nested dictionaries."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= tensors(value, f"{name}{key}.")
        elif isinstance(value, Tensor):
            found[name + key] = value.float() if value.dtype in (torch.bool, torch.int64) else value
    return found
