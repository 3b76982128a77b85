"""Pipeline directories as stock diffusers and transformers open them, among them the embedded teacher's."""

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import CLIPTextModel

from diffgan.storage.embedded import embedded
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.pipeline_files import save_pipeline
from diffgan.teachers.registry import load_teacher
from tests.pipelines import FAMILIES, saved

EMBEDDED = embedded("teacher")
CAPTION = "a bold serif capital A in dark red on cream"


def require_images(folder, kind, prompt):
    """One image from a stock pipeline that was opened without arguments."""
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert {pipeline.text_encoder.dtype, pipeline.unet.dtype, pipeline.vae.dtype} == {torch.float32}
    generator = torch.Generator().manual_seed(0)
    images = pipeline(prompt, num_inference_steps=2, generator=generator, output_type="pt").images
    assert images.isfinite().all() and images.std() > 0.01


def require_complete(folder, networks):
    for subfolder, kind in networks.items():
        _, info = kind.from_pretrained(folder, subfolder=subfolder, output_loading_info=True)
        assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), subfolder


def test_the_embedded_teacher_opens_and_generates_in_stock_diffusers():
    require_images(EMBEDDED, StableDiffusionPipeline, CAPTION)
    networks = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    require_complete(EMBEDDED, networks)


def test_the_embedded_text_encoder_has_the_names_that_older_transformers_look_for():
    with safe_open(EMBEDDED / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118


def test_the_embedded_vocabulary_splits_words_as_the_tokenizer_does():
    """`vocab.json` and `merges.txt`, read by the tokenizers library alone."""
    folder = EMBEDDED / "tokenizer"
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    words = Tokenizer(BPE.from_file(*files, end_of_word_suffix="</w>"))
    own = load_teacher("glyphs").tokenizers[0]
    split = [token for word in CAPTION.split() for token in words.encode(word.lower()).ids]
    assert split == own(CAPTION).input_ids[1:-1]


def test_the_embedded_teacher_has_the_digest_of_pairs_made_before():
    assert weights_digest(load_teacher("glyphs")) == "9021eb60b18a37556a715e8ab42b3031"


@pytest.mark.parametrize("family", ["miniature", "sd1", "sdxl"])
def test_a_saved_pipeline_is_the_same_teacher_and_opens_in_stock_diffusers(family, tmp_path):
    FAMILIES[family]().save_pretrained(tmp_path / "stock")
    teacher = load_teacher(str(tmp_path / "stock"))
    save_pipeline(teacher.as_pipeline(), tmp_path / "saved")
    assert weights_digest(load_teacher(str(tmp_path / "saved"))) == weights_digest(teacher)
    require_images(tmp_path / "saved", DiffusionPipeline, "digit 7")
    with safe_open(tmp_path / "saved" / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    require_complete(tmp_path / "saved", {"text_encoder": CLIPTextModel})


def test_loading_a_teacher_does_not_change_the_random_state(tiny_pipeline):
    """With and without accelerate: networks that are initialised afterwards have the same weights."""
    before = torch.random.get_rng_state()
    load_teacher(str(tiny_pipeline))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_pipeline_stored_in_16_bits_opens_in_one_dtype(family, tmp_path):
    """The library would load T5 in the dtype that its configuration states, and the other networks in float32."""
    teacher = load_teacher(str(saved(FAMILIES[family], tmp_path / "teacher")))
    save_pipeline(teacher.to(torch.bfloat16).as_pipeline(), tmp_path / "half")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "half")
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {network.dtype for network in networks} == {torch.float32}
