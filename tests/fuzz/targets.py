"""Valid files, the commands that read them, and which files a command may change."""

import copy
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from diffgan.__main__ import main
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from tests.fuzz.mutations import Mutation, changed_bytes, changed_header, changed_json, changed_yaml
from tests.pipelines import miniature, saved
from tests.runs import distillation

ROOT = Path(__file__).parents[2]
TWO_BATCHES = ("--trainer.max_steps", "2")
RUN = "runs/run"
SHARD = "pairs/set/pairs-00000-of-00002.safetensors"


class Target(NamedTuple):
    """A file and the command that reads it.

    file: in the workspace.  words: of the command.  mutations: of the file.  cost: seconds on a slow machine.
    writes: patterns of files that the command may change if it succeeds.
    """

    file: str
    words: tuple[str, ...]
    mutations: tuple[Mutation, ...]
    cheap: bool = True
    writes: tuple[str, ...] = ()


RECORDS = ("tables", "records/teacher.json", "records/student.json", "--output", "new/table.md")
TARGETS = {
    "fit configuration": Target("fit.yaml", ("fit", "-c", "fit.yaml", *TWO_BATCHES), (changed_yaml,)),
    "predict configuration": Target("pairs.yaml", ("predict", "-c", "pairs.yaml"), (changed_yaml,)),
    "configuration, bytes": Target("fit.yaml", ("fit", "-c", "fit.yaml", *TWO_BATCHES), (changed_bytes,)),
    "manifest": Target(
        "pairs/set/manifest.json", ("pairs", "verify", "pairs/set", "--sample", "0"), (changed_json, changed_bytes)
    ),
    "manifest, status": Target("pairs/set/manifest.json", ("pairs", "status", "pairs/set"), (changed_json,)),
    "shard": Target(
        SHARD, ("pairs", "verify", "pairs/set", "--sample", "0"), (changed_header, changed_header, changed_bytes)
    ),
    "records": Target("records/student.json", RECORDS, (changed_json, changed_json, changed_bytes)),
    "table file": Target("table.yaml", ("sweep", "table.yaml", "--plan"), (changed_yaml, changed_yaml, changed_bytes)),
    "manifest, fit": Target(
        "pairs/set/manifest.json", ("fit", "-c", "fit.yaml", *TWO_BATCHES), (changed_json,), cheap=False
    ),
    "perceptual weights": Target(
        "weights.safetensors",
        ("fit", "-c", "perceptual.yaml", *TWO_BATCHES),
        (changed_header, changed_header, changed_bytes),
        cheap=False,
    ),
    "checkpoint, export": Target(
        f"{RUN}/checkpoints/last.ckpt", ("export", RUN, "new/student"), (changed_bytes,), cheap=False
    ),
    "checkpoint, fit": Target(
        f"{RUN}/checkpoints/last.ckpt",
        ("fit", "-c", "resume.yaml", *TWO_BATCHES),
        (changed_bytes,),
        cheap=False,
        writes=(f"{RUN}/*",),
    ),
}


def prepare(folder: Path) -> None:
    """Make the workspace: a teacher, a pair set, a trained run, weights, records, and configurations of them all.

    Paths in it are relative to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved(miniature, folder / "teacher")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "records").mkdir()
    shutil.copy(ROOT / "configs/tables/bapps.yaml", folder / "table.yaml")
    for name, text in _records().items():
        (folder / "records" / name).write_bytes(text)
    torch.manual_seed(0)
    network = LatentVGG16(4, width=0.125).eval()
    save_weights(folder / "weights.safetensors", PerceptualWeights(network, LatentSpace.of(miniature().vae)))
    (folder / "prompts.txt").write_text("a bold capital A in red on cream\ndigit 7\n")
    for name, config in _configurations().items():
        (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))


def make_results() -> None:
    """Make the pair set and the run in the workspace, which is the current folder."""
    main(["predict", "-c", "made.yaml"])
    main(["fit", "-c", "resume.yaml", "--model.init_args.images", "16"])


def may_change(target: Target, name: str) -> bool:
    """Whether a command that succeeds may change a file of the workspace."""
    return any(fnmatch(name, pattern) for pattern in target.writes)


def _records() -> dict[str, bytes]:
    """Records of the demo: one of a teacher and one of a student, of the same protocol."""
    demo = ROOT / "configs/glyphs/results/demo"
    teacher, student = (next(iter(sorted(demo.glob(pattern)))) for pattern in ("*teacher*.json", "*student*.json"))
    return {"teacher.json": teacher.read_bytes(), "student.json": student.read_bytes()}


def _configurations() -> dict[str, dict]:
    fit = distillation("teacher", "pairs/set", Path("new"))
    fit["trainer"]["callbacks"].pop(2)  # the grid takes longer than the training
    fit["model"]["init_args"]["images"] = 16
    fit["seed_everything"] = 3
    fit["model"]["init_args"]["adversarial"] = {
        "class_path": "diffgan.methods.adversarial.AdversarialTraining",
        "init_args": {
            "discriminator": {"class_path": "diffgan.nets.discriminator.MultiScaleDiscriminator"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.0, 0.99]}},
            "starts_at_images": 8,
            "warmup_images": 4,
            "clip_norm": 5.0,
            "mismatch_share": 0.25,
        },
    }
    resume = distillation("teacher", "pairs/set", Path("runs"))
    resume["trainer"]["callbacks"].pop(2)
    resume["model"]["init_args"]["images"] = 32
    perceptual = copy.deepcopy(fit)
    distance = {"class_path": "diffgan.perceptual.lpips.ELatentLPIPS", "init_args": {"weights": "weights.safetensors"}}
    perceptual["model"]["init_args"]["regression"] = {
        "class_path": "diffgan.losses.regression.Perceptual",
        "init_args": {"distance": distance},
    }
    predict = _predict("new/set")
    return {
        "fit.yaml": fit,
        "resume.yaml": resume,
        "perceptual.yaml": perceptual,
        "pairs.yaml": predict,
        "made.yaml": _predict("pairs/set"),
    }


def _predict(folder: str) -> dict:
    writer = {"folder": folder, "shard_size": 16, "lease_seconds": 60.0}
    return {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(Path(folder).parent),
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "callbacks.pair_writer.PairWriter", "init_args": writer}],
        },
        "model": {
            "class_path": "diffgan.pairs.generation.PairGeneration",
            "init_args": {"teacher": "teacher", "steps": 2, "guidance": 2.0, "solver": "DDIMScheduler"},
        },
        "data": {
            "class_path": "datamodules.prompts.Prompts",
            "init_args": {"prompts": "prompts.txt", "pairs": 24, "seed_base": 0, "batch_size": 8, "repeat": 1},
        },
    }
