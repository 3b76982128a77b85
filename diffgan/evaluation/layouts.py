"""Layouts of saved images: files and folders as the benchmarks read them.

`flat` is this project's; the others are those of GenEval (github.com/djghosh13/geneval), GenEval 2
(github.com/facebookresearch/GenEval2) and DPG-Bench (github.com/TencentQQGYLab/ELLA), whose tools compute their scores.
"""

import hashlib
import io
import json
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.provenance import write_json
from diffgan.noise import SEEDS
from diffgan.prompts import PromptFile
from diffgan.storage.atomic import write_atomic
from diffgan.storage.json_files import parse_object

SEED_BASE = 3_000_000_000  # of prompts that are no protocol's; pairs begin at 0


class Layout(ABC):
    """Where the images of each prompt are saved.

    Attributes:
        per_prompt: images of one prompt.

    Args:
        prompts: one text for each number; their images are in the order of the numbers.
    """

    per_prompt: ClassVar[int] = 1

    def __init__(self, prompts: list[str]):
        self.prompts = prompts

    @classmethod
    def read(cls, source: str) -> "Layout":
        """The layout for the prompts of a benchmark's own file; raises UserError if it is none."""
        return cls(_prompts_of(source))

    @abstractmethod
    def files(self, number: int) -> list[Path]:
        """The files of a prompt, relative to the folder."""

    @abstractmethod
    def write(self, folder: Path, number: int, images: Tensor) -> None:
        """Write the files of a prompt: images (per_prompt, 3, H, W) uint8."""

    def finish(self, folder: Path) -> None:  # noqa: B027 (most layouts have no such file)
        """Write what belongs to all images, when all are there."""

    def is_complete(self, folder: Path, number: int) -> bool:
        """Whether all files of a prompt are there."""
        return all((folder / file).is_file() for file in self.files(number))

    def seeds(self, number: int) -> list[int]:
        """The seeds of a prompt's images, where no protocol says them."""
        first = SEED_BASE + number * self.per_prompt
        return list(range(first, first + self.per_prompt))

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over prompts and seeds."""
        fields = [self.prompts, self.per_prompt, SEED_BASE]
        return hashlib.blake2b(json.dumps(fields).encode(), digest_size=8).hexdigest()


class Flat(Layout):
    """`00000.png`, one image for each prompt or row of a protocol."""

    def files(self, number: int) -> list[Path]:
        return [Path(f"{number:05d}.png")]

    def write(self, folder: Path, number: int, images: Tensor) -> None:
        (image,), (file,) = images, self.files(number)
        write_png(folder / file, image)


class GenEval(Layout):
    """`00000/metadata.jsonl`, the line of `evaluation_metadata.jsonl`, and `00000/samples/0000.png` to `0003.png`."""

    per_prompt = 4

    def __init__(self, lines: list[str]):
        super().__init__([parse_object(line)["prompt"].strip() for line in lines])
        self.lines = lines

    @classmethod
    def read(cls, source: str) -> "GenEval":
        return cls(_lines_of(source))

    def files(self, number: int) -> list[Path]:
        folder = Path(f"{number:05d}")
        return [folder / "metadata.jsonl", *(folder / "samples" / f"{i:04d}.png" for i in range(self.per_prompt))]

    def write(self, folder: Path, number: int, images: Tensor) -> None:
        metadata, *samples = self.files(number)
        write_atomic(folder / metadata, (self.lines[number] + "\n").encode())
        for file, image in zip(samples, images, strict=True):
            write_png(folder / file, image)


class GenEval2(Flat):
    """As `flat`, and `image_paths.json`, which maps the prompts of `geneval2_data.jsonl` to their files."""

    @classmethod
    def read(cls, source: str) -> "GenEval2":
        return cls([json.loads(line)["prompt"] for line in _lines_of(source)])  # the keys of the map, to the letter

    def finish(self, folder: Path) -> None:
        paths = {prompt: str((folder / self.files(i)[0]).resolve()) for i, prompt in enumerate(self.prompts)}
        write_json(paths, folder / "image_paths.json")


class DPG(Layout):
    """`NAME.png` for the prompt `NAME.txt`, a grid of two by two images."""

    per_prompt = 4

    def __init__(self, names: list[str], prompts: list[str]):
        super().__init__(prompts)
        self.names = names

    @classmethod
    def read(cls, source: str) -> "DPG":
        """source: the benchmark's folder `dpg_bench/prompts`."""
        files = sorted(Path(source).glob("*.txt"))
        if not files:
            raise UserError(f"--prompts: {source} holds no .txt files; name the folder dpg_bench/prompts")
        return cls([file.stem for file in files], [_text_of(file).strip() for file in files])

    def files(self, number: int) -> list[Path]:
        return [Path(f"{self.names[number]}.png")]

    def write(self, folder: Path, number: int, images: Tensor) -> None:
        upper, lower = (torch.cat(list(pair), dim=2) for pair in images.split(2))  # side by side
        write_png(folder / self.files(number)[0], torch.cat([upper, lower], dim=1))


LAYOUTS: dict[str, type[Layout]] = {"flat": Flat, "geneval": GenEval, "geneval2": GenEval2, "dpg": DPG}


def read_layout(name: str, source: str) -> Layout:
    """The layout of this name for the prompts of a file or folder.

    Raises:
        UserError: it cannot be read, or has more images than there are seeds.
    """
    layout = LAYOUTS[name].read(source)
    if SEED_BASE + len(layout.prompts) * layout.per_prompt > SEEDS:
        raise UserError(f"--prompts: the seeds of {source}'s images leave [0, 2^32)")
    return layout


def write_png(file: Path, image: Tensor) -> None:
    """Write an image (3, H, W) uint8, completely or not at all."""
    data = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(data, "PNG")
    write_atomic(file, data.getvalue())


def _prompts_of(source: str) -> list[str]:
    file = PromptFile(source)
    return file.read(range(len(file)))


def _lines_of(source: str) -> list[str]:
    """The lines of a .jsonl file with a key `prompt`; raises UserError if one is none."""
    lines = [line for line in _text_of(Path(source)).split("\n") if line.strip()]
    if not lines:
        raise UserError(f"--prompts: {source} is empty")
    for number, line in enumerate(lines, 1):
        try:
            parse_object(line)["prompt"].strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"--prompts: line {number} of {source} is no JSON object with a text `prompt`") from error
    return lines


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {file} cannot be read ({error})") from error
