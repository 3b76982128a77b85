"""Part 1: the demo's chain in small through the commands, on the device: pairs, training, evaluation, export."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from diffgan.evaluation.protocols.glyphs import GLYPH_PROTOCOLS, GlyphProtocol
from diffgan.losses.gradient_penalty import full_precision
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from tests.gpu.commands import CommandFailed, one_device, run_command, stage_configs
from tests.gpu.parts import Cell, Setting

PROTOCOL = GlyphProtocol("gpu-check", images=16, diversity_prompts=2, images_per_prompt=2)  # the smallest there is
PROMPTS = ["digit 7", "small g on blue"]
BATCH = 8
TOLERANCE = 1e-5  # of the export: largest difference to the student, in fp32


class InterruptAfter(pl.Callback):
    """Sends this process the signal of Ctrl-C after a batch.

    Args:
        images: images seen when it is sent.
    """

    def __init__(self, images: int):
        self.images = images

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if pl_module.images_seen == self.images:
            os.kill(os.getpid(), signal.SIGINT)


class Chain:
    """The commands of the chain in one folder.

    Args:
        setting: of the check.
        folder: of pairs, run and export.
    """

    def __init__(self, setting: Setting, folder: Path):
        self.setting, self.folder = setting, folder
        self.interrupted_at, self.images = setting.choose((48, 80), (24, 40))
        self.pairs, self.run, self.student = folder / "pairs", folder / "runs" / "distill", folder / "student"
        GLYPH_PROTOCOLS[PROTOCOL.name] = PROTOCOL

    def steps(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """The steps by name, each needing those before it."""
        return {
            "predict": self.predict,
            "pairs verify": self.verify,
            "fit, interrupted": self.fit_interrupted,
            "fit, resumed": self.fit_resumed,
            "test": self.test,
            "export": self.export,
            "stock diffusers": self.stock_diffusers,
        }

    # ---- the commands ----

    def predict(self) -> dict[str, Any]:
        """Make the pairs."""
        count = self.setting.choose(64, 24)
        data = {"init_args": {"pairs": count, "batch_size": self.setting.choose(32, 12)}}
        writer = {"init_args": {"shard_size": self.setting.choose(32, 12)}}
        trainer = one_device(self.setting) | {"callbacks": {"pairs": writer}}
        difference = {"recipe": self._recipe(), "trainer": trainer, "data": data}
        run_command(["predict", *stage_configs("pairs", difference, self.folder)])
        return {"pairs": count}

    def verify(self) -> dict[str, Any]:
        """Check the set and make some of its pairs again."""
        run_command(["pairs", "verify", str(self.pairs), "--sample", "8"])
        return {}

    def fit_interrupted(self) -> dict[str, Any]:
        """Train until a Ctrl-C; from the third batch on with the discriminator, the penalty among its steps."""
        interrupt = {"class_path": f"{__name__}.InterruptAfter", "init_args": {"images": self.interrupted_at}}
        run_command(self._fit({"interrupt": interrupt}), exit_code=128 + signal.SIGINT)
        if (images := self._images_seen()) != self.interrupted_at:
            raise CommandFailed(f"the checkpoint is of {images} images, not {self.interrupted_at}")
        return {"images": images}

    def fit_resumed(self) -> dict[str, Any]:
        """The same command without the interruption: to the end."""
        run_command(self._fit({}))
        if (images := self._images_seen()) != self.images:
            raise CommandFailed(f"the run ended after {images} images, not {self.images}")
        return {"images": images, "grids": len(list(self.run.glob("samples/*.png")))}

    def test(self) -> dict[str, Any]:
        """Evaluate the student."""
        run_command(["test", *self._fit({})[1:]])
        return {"images": PROTOCOL.images}

    def export(self) -> dict[str, Any]:
        """Write the student as a pipeline of diffusers."""
        run_command(["export", str(self.run), str(self.student)])
        return {}

    def stock_diffusers(self) -> dict[str, Any]:
        """One step of the exported pipeline against the student of the checkpoint, both on the device in fp32."""
        noise = draw_noise(range(len(PROMPTS)), load_teacher("glyphs").latent_shape).to(self.setting.device)
        with torch.no_grad(), full_precision(self.setting.device, second_derivatives=False):
            difference = (self._drawn_by_diffusers(noise) - self._drawn_by_student(noise)).abs().max().item()
        if not difference <= TOLERANCE:
            raise CommandFailed(f"the export differs from the student by {difference:.2g}, more than {TOLERANCE}")
        return {"difference": difference}

    # ---- their configurations ----

    def _recipe(self) -> dict[str, Any]:
        return {"pairs": str(self.pairs), "runs": str(self.folder / "runs"), "steps": self.setting.choose(20, 2)}

    def _fit(self, more_callbacks: dict[str, Any]) -> list[str]:
        callbacks = {
            "ema": {"init_args": {"half_life_images": 20}},
            "checkpoint": {"init_args": {"every_images": 16}},
            "health": {"init_args": {"prompts": PROMPTS, "noises": 2, "every_images": 16}},
            "samples": {"init_args": {"prompts": PROMPTS, "steps": self.setting.choose(50, 2)}},
            "evaluation": {"init_args": {"protocol": PROTOCOL.name, "cache": None}},
        }
        trainer = one_device(self.setting) | {"val_check_interval": 4, "log_every_n_steps": 1}
        trainer["callbacks"] = callbacks | more_callbacks
        adversarial = {"init_args": {"starts_at_images": 2 * BATCH, "r1_every": 2, "warmup_images": BATCH}}
        model = {"images": self.images, "warmup_images": BATCH, "cooldown_images": 0, "adversarial": adversarial}
        data = {"init_args": {"batch_size": BATCH, "validation_pairs": BATCH}}
        difference = {"recipe": self._recipe(), "trainer": trainer, "model": {"init_args": model}, "data": data}
        return ["fit", *stage_configs("distill", difference, self.folder)]

    # ---- what they wrote ----

    def _checkpoint(self) -> dict[str, Any]:
        return torch.load(self.run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")

    def _images_seen(self) -> int:
        return self._checkpoint()["images_seen"]

    def _drawn_by_student(self, noise: Tensor) -> Tensor:
        """x^ of the averaged generator in the run's checkpoint."""
        teacher = load_teacher("glyphs").to(noise.device)
        student = OneStepGenerator(teacher.denoiser, teacher.scheduler).to(noise.device)
        weights = self._checkpoint()["state_dict"]
        average = {name: weight for name, weight in weights.items() if name.startswith("generator_ema.")}
        student.load_state_dict({name.removeprefix("generator_ema."): weight for name, weight in average.items()})
        return student(noise, teacher.encode(PROMPTS))

    def _drawn_by_diffusers(self, noise: Tensor) -> Tensor:
        pipe = StableDiffusionPipeline.from_pretrained(self.student).to(noise.device)
        pipe.unet.to(memory_format=torch.channels_last)  # as the student's, so that the same kernels compute
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 1, "guidance_scale": 1, "output_type": "latent"}
        return pipe(PROMPTS, latents=noise, **options).images


def cells(setting: Setting) -> list[Cell]:
    """One cell for each step of the chain."""
    folder = setting.once("folder", tempfile.TemporaryDirectory)
    steps = Chain(setting, Path(folder.name)).steps()
    return [Cell(name, step) for name, step in steps.items()]
