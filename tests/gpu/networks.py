"""Teachers with random weights, built on the device from their configurations, and what is trained from them."""

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffgan.conditioning import Conditioning
from diffgan.latent_space import LatentSpace
from diffgan.losses.regression import Perceptual
from diffgan.memory.networks import skeleton_teacher
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.lpips import ELatentLPIPS
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.teachers.base import Teacher
from diffgan.teachers.denoiser import adapter_for
from diffgan.teachers.stable_diffusion import StableDiffusion
from diffgan.teachers.stable_diffusion_xl import StableDiffusionXL
from tests import pipelines
from tests.gpu.parts import ROOT, Setting

SD15, SDXL = "sd15", "sdxl"
TINY = {SD15: (StableDiffusion, pipelines.sd1), SDXL: (StableDiffusionXL, pipelines.sdxl)}
TOKENS = 77  # of a prompt of Stable Diffusion
ADAMW = partial(torch.optim.AdamW, lr=1e-5, betas=(0.0, 0.99), weight_decay=0.0, fused=True)  # as configs/sd15


def random_teacher(setting: Setting, name: str) -> Teacher:
    """A teacher of a family in full size (tiny on request) on the device; its tokenizers know few words."""
    torch.manual_seed(0)
    if setting.tiny:
        family, build = TINY[name]
        return family.from_pipeline(build()).to(setting.device)
    teacher = skeleton_teacher(str(ROOT / "tests/data/pipelines" / name), str(setting.device))
    for component in teacher.components:
        if component.startswith("tokenizer"):
            setattr(teacher, component, pipelines.train_tokenizer(pipelines.CAPTIONS, TOKENS))
    return teacher


def random_conditioning(teacher: Teacher, rows: int, device: torch.device | str = "cpu") -> Conditioning:
    """Random values in place of the encoding of `rows` prompts."""
    tokens = teacher.text_encoders[0].config.max_position_embeddings
    one = adapter_for(teacher.denoiser).empty_conditioning(teacher.denoiser.config, tokens)
    return one.map(lambda row: torch.randn(rows, *row.shape[1:], device=device))


def random_latents(teacher: Teacher, rows: int, device: torch.device | str = "cpu") -> Tensor:
    """N(0, 1), (rows, C, H, W)."""
    return torch.randn(rows, *teacher.latent_shape, device=device)


def random_vgg_file(folder: str, setting: Setting, space: LatentSpace, omitted_pools: int = 3) -> Path:
    """A weight file of VGG16 with random weights, of full width (an eighth of it with tiny networks)."""
    torch.manual_seed(0)
    network = LatentVGG16(space.channels, setting.choose(1.0, 0.125), omitted_pools=omitted_pools)
    save_weights(Path(folder) / "vgg.safetensors", PerceptualWeights(network, space))
    return Path(folder) / "vgg.safetensors"


def random_distance(setting: Setting, space: LatentSpace) -> ELatentLPIPS:
    """E-LatentLPIPS with random weights, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        return ELatentLPIPS(random_vgg_file(folder, setting, space), "bgo")


def adversarial_training(r1: str = "exact") -> AdversarialTraining:
    """As in configs/sd15, from the first image on."""
    settings = {"warmup_images": 0, "input_noise": 0.05, "r1": r1, "r1_gamma": 10.0}
    return AdversarialTraining(MultiScaleDiscriminator, ADAMW, **settings)


class RandomDistillation(Diffusion2GAN):
    """Diffusion2GAN with a teacher that is given in place of its path, and whose networks stay where they are.

    When the trained networks have been built, the teacher's network and autoencoder lose their weights, which a
    training does not need: the project keeps them on the CPU, and copying them there would take seconds.

    Args:
        teacher: on the device of the training.
        setting: of the check.
        keep_text: the text encoders keep their weights; needed if the pairs have no conditioning.
        options: further arguments of `Diffusion2GAN`.
    """

    def __init__(self, teacher: Teacher, setting: Setting, images: int, keep_text: bool = False, **options):
        regression = setting.once(f"distance {teacher.space}", lambda: random_distance(setting, teacher.space))
        super().__init__("random", Perceptual(regression), ADAMW, images, warmup_images=0, **options)
        self._given, self._keep_text = [teacher], keep_text  # in a list: it is no submodule

    def _load_teacher(self) -> None:
        self.keep_teacher(self._given.pop())
        self.regression.check_space(self.teacher.space)

    def configure_model(self) -> None:
        super().configure_model()
        text = [] if self._keep_text else self.teacher.text_encoders
        for part in (self.teacher.denoiser, self.teacher.vae, *text):
            part.to("meta")
