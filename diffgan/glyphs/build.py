"""Build files of the package from others.

`python -m diffgan.glyphs.build pipeline SOURCE TARGET` writes the pipeline of the glyph teacher,
`python -m diffgan.glyphs.build captions COUNT TARGET` a file of prompts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diffgan.errors import UserError, print_error
from diffgan.glyphs.recipe import describe
from diffgan.storage.atomic import write_atomic
from diffgan.teachers.pipeline_files import save_pipeline
from diffgan.teachers.registry import load_teacher

PROMPT_SEED = 7


def build_pipeline(source: str, target: Path) -> None:
    """Write a copy of a pipeline directory, rounded to float16, that does not contain the path of its source.

    Text encoders are stored in float32: transformers loads them in the dtype of their file, while diffusers loads the
    other networks in float32 whatever their file holds, and a pipeline of networks of different dtypes does not run.

    Args:
        source: a pipeline directory.
        target: directory to write.

    Raises:
        UserError: `source` is no pipeline of a known family.
    """
    teacher = load_teacher(source, torch.float16)
    for name in ("vae", "unet"):
        getattr(teacher, name).register_to_config(_name_or_path=f"diffgan/glyphs/{name}")
    for text_encoder in teacher.text_encoders:
        text_encoder.float()
    save_pipeline(teacher.as_pipeline(), target)


def build_captions(count: int, target: Path) -> None:
    """Write the first captions of the training families that are not empty, one per line.

    Args:
        count: number of captions.
        target: text file to write.

    Raises:
        UserError: the file cannot be written.
    """
    captions = (glyph.caption for glyph in describe("train", PROMPT_SEED, range(2 * count)))
    lines = [caption for caption in captions if caption][:count]
    write_atomic(target, ("\n".join(lines) + "\n").encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diffgan.glyphs.build", description="Build files of the package.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    pipeline = verbs.add_parser("pipeline", help="the pipeline of the glyph teacher, in half precision")
    pipeline.add_argument("source", help="pipeline directory")
    pipeline.add_argument("target", type=Path, help="directory to write")
    captions = verbs.add_parser("captions", help="a file of prompts")
    captions.add_argument("count", type=int, help="number of captions")
    captions.add_argument("target", type=Path, help="text file to write")
    return parser


def main(words: Sequence[str]) -> None:
    """Run the command line; words: its arguments. A user's error ends with one line and exit code 1."""
    options = _parser().parse_args(words)
    try:
        if options.verb == "pipeline":
            build_pipeline(options.source, options.target)
        else:
            build_captions(options.count, options.target)
    except UserError as error:
        print_error(error)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
