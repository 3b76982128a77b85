"""One adapter per pipeline class of diffusers; a new family is one file here and one line below."""

from diffgan.teachers.base import Teacher
from diffgan.teachers.stable_diffusion import StableDiffusion
from diffgan.teachers.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, type[Teacher]] = {
    family.pipeline_class.__name__: family for family in (StableDiffusion, StableDiffusionXL)
}
