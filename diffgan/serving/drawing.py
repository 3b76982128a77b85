"""What the page draws with: a student and, if given, its teacher, each with its number of steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffgan.errors import UserError
from diffgan.images import finite_uint8
from diffgan.noise import draw_noise
from diffgan.reports.images import data_uri
from diffgan.serving.request import DrawRequest
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import exported_size, load_teacher

IMAGE_BYTES = 200_000  # of a WebP


@dataclass(frozen=True)
class Model:
    """A pipeline and how it is called.

    role: "student" or "teacher".  name: of the pipeline, without its folder.  steps, guidance: as in `Teacher.solve`.
    """

    role: str
    name: str
    pipeline: Teacher
    steps: int
    guidance: float

    @property
    def network_calls(self) -> int:
        """Network calls for an image."""
        return self.pipeline.network_calls(self.steps)

    def check(self, prompts: Sequence[str]) -> None:
        """Raise a UserError if the text encoder takes fewer tokens than a prompt has."""
        for prompt, truncated in zip(prompts, self.pipeline.truncated(prompts), strict=True):
            if truncated:
                raise UserError(f"prompt: {prompt[:40]!r} ... has more tokens than the {self.role} takes; shorten it")


@dataclass(frozen=True)
class DrawnRow:
    """The images of one model: data URIs.  seconds: for an image, on average, from prompt to pixels."""

    role: str
    network_calls: int
    seconds: float
    images: list[str]


def load_models(student: str, teacher: str | None, steps: int, guidance: float, device: str) -> list[Model]:
    """Load a student and its teacher, and draw one image with each, so that the first request takes no longer.

    Raises:
        UserError: a pipeline cannot be loaded or called with these settings, or their latents differ in shape.
    """
    models = [_load("student", student, 1, 1.0, device)]
    if teacher is not None:
        models.append(_load("teacher", teacher, steps, guidance, device, exported_size(student)))
    shapes = [model.pipeline.latent_shape for model in models]
    if shapes[0] != shapes[-1]:
        raise UserError(f"--teacher: its latents are {shapes[-1]} and the student's {shapes[0]}; name its own teacher")
    for model in models:
        draw_row(model, DrawRequest([""], [0]))
    return models


def draw_row(model: Model, request: DrawRequest) -> DrawnRow:
    """The images of a request, one at a time: the seconds are those of one image.

    Raises:
        UserError: an image is not finite, or memory is not sufficient.
    """
    began = time.perf_counter()
    try:
        images = [_draw(model, prompt, seed) for prompt, seed in request.columns]
    except torch.OutOfMemoryError as error:
        raise UserError(f"{model.role}: the device has too little memory for an image; use another --device") from error
    seconds = (time.perf_counter() - began) / len(images)
    return DrawnRow(model.role, model.network_calls, seconds, images)


def _load(role: str, path: str, steps: int, guidance: float, device: str, size: Sequence[int] | None = None) -> Model:
    try:
        pipeline = load_teacher(path, size=size).to(device)
    except (RuntimeError, AssertionError) as error:  # torch's, for a device that is not there
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error
    pipeline.schedule.check_steps(steps)
    return Model(role, Path(path).absolute().name, pipeline, steps, guidance)


def _draw(model: Model, prompt: str, seed: int) -> str:
    """One image as a data URI."""
    pipeline = model.pipeline
    noise = draw_noise([seed], pipeline.latent_shape).to(pipeline.device)
    latent = pipeline.solve(noise, pipeline.encode([prompt]), model.steps, model.guidance)
    (image,) = finite_uint8(pipeline.decode(latent), [prompt], [seed])
    return data_uri(image, IMAGE_BYTES)
