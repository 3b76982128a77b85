"""The files and commands of README.md, "Your own teacher", on a tiny teacher."""

import re
import shlex
from pathlib import Path

import torch

from diffgan.__main__ import main
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.teachers.registry import load_teacher
from tests.cli.test_convert import Reference
from tests.pipelines import FAMILIES, saved
from tests.runs import checkpoint

SECTION = Path("README.md").read_text().split("## Your own teacher\n")[1].split("\n## ")[0]
SMALLER = {
    "predict": "--recipe.pair_count 80 --data.init_args.batch_size 16 --trainer.precision 32-true --recipe.steps 2",
    "fit": "--model.images 64 --model.warmup_images 0 --model.cooldown_images 16 --data.batch_size 16 "
    "--model.adversarial.init_args.starts_at_images 32 --model.adversarial.init_args.warmup_images 0 "
    "--data.validation_pairs 16 --data.workers 0 --recipe.steps 2 "
    "--trainer.callbacks.checkpoint.init_args.every_images 32",
}
ON_CPU = "--trainer.accelerator cpu"


def files():
    """{name: content} of the YAML files that the section shows."""
    return dict(re.findall(r"```yaml\n# ([\w-]+\.yaml).*\n((?:.*\n)*?)```", SECTION))


def commands():
    """The words of every `diffgan` command of the section."""
    (block,) = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("diffgan ")]


def test_the_commands_make_a_student(tmp_path, monkeypatch, capsys):
    """From `plan` to `push --dry_run` as written, with smaller numbers, in a folder of the user's."""
    monkeypatch.chdir(tmp_path)
    saved(FAMILIES["sd1"], tmp_path / "path" / "to" / "my-pipeline")
    for name, content in files().items():
        Path(name).write_text(content)
    Path("my-prompts.txt").write_text("".join(f"digit {i % 10}\n" for i in range(40)))
    torch.save(Reference(4).checkpoint(), "sd15_latest_vgg16_tuned.pth")
    for words in commands():
        small = f"{SMALLER[words[0]]} {ON_CPU}".split() if words[0] in SMALLER else []
        main([*words, *small])
        if words[0] == "convert":  # the tiny autoencoder has another factor than that of these weights
            space = load_teacher("path/to/my-pipeline").space
            weights = PerceptualWeights(LatentVGG16(space.channels, width=0.125).eval(), space)
            save_weights(Path(words[2]), weights)
    verbs = [words[0] for words in commands()]
    assert verbs == ["plan", "predict", "convert", "fit", "export", "push"]
    assert checkpoint(tmp_path / "runs" / "mine" / "lora")["images_seen"] == 64
    assert "GPUs of 24 GB suffice" in (printed := capsys.readouterr().out) and "me/my-student" in printed
    assert (tmp_path / "student" / "model_index.json").is_file()
