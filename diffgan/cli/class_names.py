"""Bare class names in configurations: `class_path: GlyphEvaluation` instead of the full path.

jsonargparse resolves a bare name among the subclasses that are imported. So the module of a class is imported when its
name appears in the arguments or in a configuration, right before the parser is built; all others cost nothing.
"""

import importlib
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

CLASSES = (
    "callbacks.coco_fid.COCOFID",
    "callbacks.compare_pairs.ComparePairs",
    "callbacks.ema.EMA",
    "callbacks.glyph_evaluation.GlyphEvaluation",
    "callbacks.image_checkpoint.ImageCheckpoint",
    "callbacks.pair_writer.PairWriter",
    "callbacks.progress.ImageProgress",
    "callbacks.progress.PairProgress",
    "callbacks.run_report.RunReport",
    "callbacks.sample_grid.SampleGrid",
    "callbacks.training_health.TrainingHealth",
    "datamodules.glyphs.GlyphCaptions",
    "datamodules.glyphs.GlyphImages",
    "datamodules.glyphs.GlyphLatents",
    "datamodules.image_folder.ImageFolderLatents",
    "datamodules.latent_pairs.LatentPairs",
    "datamodules.prompts.Prompts",
    "datamodules.two_afc.BAPPS",
    "datamodules.two_afc.SyntheticGlyphTwoAFC",
    "diffgan.glyphs.autoencoder.AutoencoderTraining",
    "diffgan.glyphs.denoiser.DenoiserTraining",
    "diffgan.glyphs.reader.ReaderTraining",
    "diffgan.glyphs.text_encoder.TextEncoderTraining",
    "diffgan.losses.regression.MSE",
    "diffgan.losses.regression.Perceptual",
    "diffgan.losses.regression.PseudoHuber",
    "diffgan.methods.adversarial.AdversarialTraining",
    "diffgan.methods.diffusion2gan.Diffusion2GAN",
    "diffgan.nets.discriminator.MultiScaleDiscriminator",
    "diffgan.nets.transformer_discriminator.TransformerDiscriminator",
    "diffgan.pairs.generation.PairGeneration",
    "diffgan.perceptual.calibration.Calibration",
    "diffgan.perceptual.classification.LatentClassificationTraining",
    "diffgan.perceptual.lpips.ELatentLPIPS",
    "diffgan.perceptual.lpips.LatentLPIPS",
    "diffgan.perceptual.pixels.PixelLPIPS",
    "diffgan.training.strategies.FSDP2Strategy",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "torch.optim.Adam",
    "torch.optim.AdamW",
)
MODULES = {path.rpartition(".")[2]: path.rpartition(".")[0] for path in CLASSES}  # bare name -> module


def import_named(words: Sequence[str]) -> None:
    """Import the modules of the classes that the command line, or a configuration file it names, mentions."""
    texts = [*words, *(_text(file) for file in config_files(words))]
    for name in sorted(set(re.findall(r"\w+", "\n".join(texts))) & MODULES.keys()):
        importlib.import_module(MODULES[name])


def config_files(words: Sequence[str]) -> list[Path]:
    """The files that `-c FILE` and `--config FILE` name, in their order."""
    return [Path(name) for name in _config_values(words)]


def _config_values(words: Sequence[str]) -> Iterable[str]:
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word in ("-c", "--config"):
            yield following
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def _text(file: Path) -> str:
    """The file's text; empty if it cannot be read, which the parser reports."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
