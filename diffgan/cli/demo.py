"""The verb `demo`: the whole method on the miniature, one command of `diffgan` after another."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffgan.cli.sweeps.child import run_in_child
from diffgan.errors import UserError
from diffgan.storage.embedded import EMBEDDED, embedded

GLYPHS = "configs/glyphs"
TEACHER_FILES = ("teacher/*/*.safetensors", "reader.safetensors")  # what the teacher's records depend on


class Size(NamedTuple):
    """How large the experiment is.

    pairs, distill: its configurations, after those of the stages.
    runs: folder of everything but the pairs.
    protocol: of the evaluation.
    steps: of the teacher, where it is evaluated.
    gpu: configurations of the stages on a GPU, by stage.
    """

    pairs: tuple[str, ...]
    distill: tuple[str, ...]
    runs: Path
    protocol: str
    steps: int
    gpu: dict[str, str]


PAIRS_ON_GPU = {"pairs": f"{GLYPHS}/gpu/pairs.yaml"}
DEMO = Size(
    pairs=(f"{GLYPHS}/demo-pairs.yaml",),
    distill=(f"{GLYPHS}/demo-distill.yaml",),
    runs=Path("runs/demo"),
    protocol="glyphs-500",
    steps=20,
    gpu=PAIRS_ON_GPU,
)
FULL = Size((), (), Path("runs/glyphs"), "glyphs-2k", 50, PAIRS_ON_GPU | {"distill": f"{GLYPHS}/gpu/distill.yaml"})


def demo(full: bool = False, gpu: bool = False) -> None:
    """Pairs, distillation, evaluation, export and a page, in folders below runs and pairs; the same command resumes.

    Args:
        full: the full experiment of the miniature: hours in place of minutes.
        gpu: with the configurations for one GPU.
    """
    size = FULL if full else DEMO
    for words in commands(size, gpu):
        print(f"diffgan {shlex.join(words)}", file=sys.stderr)
        if not run_in_child(words):
            raise UserError(f"demo: {words[0]} failed, see above; the same command resumes")
    print(f"teacher and student side by side: {size.runs / 'distill' / 'report.html'}")


def commands(size: Size, gpu: bool) -> Iterator[list[str]]:
    """The commands that are to be run, each decided on after the one before it."""
    runs, on_gpu = size.runs, size.gpu if gpu else {}
    distill = _given(f"{GLYPHS}/distill.yaml", on_gpu.get("distill"), *size.distill)
    yield ["predict", *_given(f"{GLYPHS}/pairs.yaml", on_gpu.get("pairs"), *size.pairs)]
    yield ["fit", *distill]
    teacher, one_step, images = runs / f"teacher-{size.steps}.json", runs / "teacher-1.json", runs / "teacher-images"
    evaluated = _evaluation(size, gpu)
    if _is_old(teacher):
        name = f"--name=teacher, {size.steps} steps"
        steps = [f"--steps={size.steps}", "--guidance=3"]
        yield ["evaluate", EMBEDDED, str(teacher), name, *steps, *evaluated, f"--save_images={images}"]
    if _is_old(one_step):
        yield ["evaluate", EMBEDDED, str(one_step), "--name=teacher, 1 step", "--steps=1", "--guidance=1", *evaluated]
    compared = [f"--trainer.callbacks.evaluation.init_args.teacher_images={images}"]
    yield ["test", *distill, *(compared if (images / "images.json").is_file() else [])]
    yield ["export", str(runs / "distill"), str(runs / "student")]
    metrics = runs / "distill" / "metrics.json"
    yield ["tables", str(teacher), str(one_step), str(metrics), "--output", str(runs / "table.md")]
    yield ["report", str(runs / "distill"), f"--beside={teacher}", f"--beside={one_step}"]


def _given(*files: str | None) -> list[str]:
    return [word for file in files if file for word in ("-c", file)]


def _evaluation(size: Size, gpu: bool) -> list[str]:
    """Options of every `evaluate`."""
    device = ["--device=cuda", "--batch_size=500"] if gpu else ["--device=cpu", "--batch_size=50"]
    return [f"--protocol={size.protocol}", "--cache=runs/evaluation", *device]


def _is_old(record: Path) -> bool:
    """Whether a record of the teacher is missing, or older than the teacher."""
    files = [file for pattern in TEACHER_FILES for file in embedded("").glob(pattern)]
    return not record.is_file() or record.stat().st_mtime < max(file.stat().st_mtime for file in files)
