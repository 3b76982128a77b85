"""Makes the files of this folder with version 0.1: `PYTHONPATH=CHECKOUT python make.py FOLDER` (see README.md)."""

import json
import lzma
import os
import shutil
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: bits depend on the number of threads

from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel

from diffgan.__main__ import main
from tests.pipelines import WITHOUT_CHECKER, autoencoder, saved, text_config, tokenizer, unet

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # `tests` is that of version 0.1

from final_weights import final_weights  # noqa: E402


def smallest() -> StableDiffusionPipeline:
    """The pipeline of the tests with the fewest channels."""
    words = tokenizer()
    config = text_config(words, hidden_size=4, intermediate_size=4)
    return StableDiffusionPipeline(
        unet=unet(block_out_channels=(4, 4), norm_num_groups=2, cross_attention_dim=4, attention_head_dim=1),
        vae=autoencoder(block_out_channels=(4, 4, 4), norm_num_groups=2),
        text_encoder=CLIPTextModel(config),
        tokenizer=words,
        scheduler=DDIMScheduler(
            prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, steps_offset=1
        ),
        **WITHOUT_CHECKER,
    )


def make(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("pairs.yaml", "distill.yaml", "prompts.txt"):
        shutil.copy(HERE / name, folder)
    os.chdir(folder)  # paths in the configurations are relative
    saved(smallest, Path("teacher"))
    main(["predict", "-c", "pairs.yaml"])
    main(["fit", "-c", "distill.yaml"])
    checkpoints = Path("run/distill/checkpoints")
    Path("final.json").write_text(json.dumps(final_weights(checkpoints / "last.ckpt"), indent=1) + "\n")
    with lzma.open(checkpoints / "last.ckpt.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as compressed:
        compressed.write((checkpoints / "previous.ckpt").read_bytes())  # of half the images


if __name__ == "__main__":
    make(Path(sys.argv[1]))
