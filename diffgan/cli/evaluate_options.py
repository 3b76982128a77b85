"""The options of `evaluate`: what applies where one is omitted, and which do not go together."""

from pathlib import Path
from typing import NamedTuple

import torch

from diffgan.errors import UserError
from diffgan.evaluation.rows import Row
from diffgan.numbers import require, require_batch_size, require_guidance
from diffgan.storage.outputs import require_file_place, require_folder_place
from diffgan.training.devices import require_device

MOST_PROCESSES = 256  # on one machine
NAME, PROTOCOL, STEPS, GUIDANCE, DTYPE = "teacher", "glyphs-500", 50, 3.0, "float32"


class Options(NamedTuple):
    """The arguments of `evaluate`.  row: of the row file, if `pipeline` names one."""

    pipeline: str
    output: Path
    name: str | None
    protocol: str | None
    steps: int | None
    guidance: float | None
    cache: Path | None
    batch_size: int
    device: str
    dtype: str | None
    devices: int
    save_images: Path | None
    layout: str
    prompts: str | None
    teacher_images: Path | None
    row: Row | None

    def completed(self) -> "Options":
        """With the values that apply where an option is omitted."""
        name, dtype = (NAME, None) if self.row is None else (self.row.name, self.row.dtype)
        return self._replace(
            name=self.name or name,
            protocol=self.protocol or PROTOCOL,
            steps=STEPS if self.steps is None else self.steps,
            guidance=GUIDANCE if self.guidance is None else self.guidance,
            dtype=self.dtype or dtype or DTYPE,
        )


def check(options: Options) -> None:
    """Raises: UserError if this machine cannot do what the options ask for, or they do not go together."""
    device, devices = options.device, options.devices
    require("--devices", devices, least=1, most=MOST_PROCESSES)
    require_batch_size("--batch_size", options.batch_size)
    if options.steps is not None:
        require("--steps", options.steps, least=1)
    if options.guidance is not None:
        require_guidance("--guidance", options.guidance)
    require_file_place(options.output)
    for folder in filter(None, (options.cache, options.save_images)):
        require_folder_place(folder)
    if options.completed().dtype == "float16" and device == "cpu":
        raise UserError("--dtype: float16 requires a GPU; use float32 or bfloat16 on a CPU")
    if device.startswith("cuda"):
        if devices > 1 and device != "cuda":
            raise UserError(f"--device: {device} is one device, and --devices is {devices}; use --device cuda")
        if (present := torch.cuda.device_count()) < devices:
            raise UserError(f"--devices: {devices}, but there are {present} GPUs on this machine")
    require_device("--device", device)
    if options.row is not None and (options.steps, options.guidance) != (None, None):
        raise UserError(f"--steps, --guidance: {options.pipeline} says them; omit them, or change a copy of this row")
    _check_images(options)


def _check_images(options: Options) -> None:
    """Raises: UserError if the options about saved images do not go together."""
    if options.prompts is not None and options.protocol is not None:
        raise UserError("--prompts: is in place of --protocol; give one of them")
    if options.prompts is not None and options.save_images is None:
        raise UserError("--prompts: needs --save_images, the folder of the images; metrics need a protocol")
    if options.prompts is not None and options.teacher_images is not None:
        raise UserError("--teacher_images: is for metrics, which need a protocol; omit it or --prompts")
    if options.teacher_images is not None and options.teacher_images == options.save_images:
        raise UserError(
            "--teacher_images: is the folder of --save_images; name the one that the teacher's images are in"
        )
    if options.layout != "flat" and options.prompts is None:
        raise UserError(f"--layout: {options.layout} needs --save_images and --prompts, the benchmark's own prompts")
