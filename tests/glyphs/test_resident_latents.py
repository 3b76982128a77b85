"""Latents that stay on the device: the same data as the plain path, reproducible epochs, and a training on them."""

from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from datamodules.glyphs import GlyphLatents
from datamodules.resident_latents import IndexedLatents, LatentEncoding, ResidentBatches, epoch_order
from diffgan.__main__ import main
from diffgan.glyphs.denoiser import DenoiserTraining, stratified_timesteps
from diffgan.glyphs.graphed import Velocity
from diffgan.storage.embedded import embedded
from diffgan.teachers.registry import load_teacher
from tests.runs import curves, shipped_config

COUNTS = {"train_images": 150, "validation_images": 20}


def prepared(tmp_path, **options):
    """The data module of the shipped autoencoder, ready to read."""
    data = GlyphLatents(embedded("teacher/vae"), tmp_path / "cache", batch_size=16, **COUNTS, **options)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    data = prepared(folder, resident=True, workers=2)
    assert not (folder / "cache").exists()
    return data


def all_rows(batches):
    return IndexedLatents(*(torch.cat(column) for column in zip(*batches, strict=True)))


def test_resident_data_are_those_of_the_plain_path(resident, tmp_path):
    plain = prepared(tmp_path)
    order = epoch_order(150, 0, 0)[:144]  # of the resident epoch: whole batches
    expected = plain.train_dataloader().dataset.__getitems__(order.tolist())
    for ours, theirs in [
        (all_rows(resident.train_dataloader()), expected),
        (all_rows(resident.val_dataloader()), plain.val_dataloader().dataset.__getitems__(range(20))),
    ]:
        torch.testing.assert_close(ours.latent, theirs.latent, atol=4e-3, rtol=2e-3)  # float16, batches of another size
        assert [resident.captions[row] for row in ours.caption] == theirs.caption
        assert torch.equal(ours.label, theirs.label)
    assert resident.captions[0] == "" and len(set(resident.captions)) == len(resident.captions)


def numbered(count):
    """Latents, captions and labels that are their own numbers."""
    numbers = torch.arange(count)
    return IndexedLatents(numbers.half().view(-1, 1, 1, 1), numbers, numbers[:, None].expand(-1, 2))


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_visits_every_image_once(world_size):
    epochs = []
    for epoch in (0, 1):
        order = partial(epoch_order, 48, 3, epoch)
        ranks = [ResidentBatches(numbered(48), 4, order, rank, world_size) for rank in range(world_size)]
        assert {len(list(batches)) for batches in ranks} == {len(ranks[0])} == {12 // world_size}
        seen = torch.cat([all_rows(batches).caption for batches in ranks])
        assert sorted(seen.tolist()) == list(range(48))
        epochs.append(seen)
        assert torch.equal(seen, torch.cat([all_rows(batches).caption for batches in ranks]))
    assert not torch.equal(*epochs)


def test_all_columns_of_a_batch_are_of_the_same_images():
    for batch in ResidentBatches(numbered(20), 8, lambda: epoch_order(20, 0, 5)):
        assert torch.equal(batch.latent.flatten().long(), batch.caption) and batch.latent.dtype == torch.float32
        assert torch.equal(batch.label, batch.caption[:, None].expand(-1, 2)) and len(batch.caption) == 8


def test_unshuffled_batches_are_all_of_the_split_in_order():
    batches = ResidentBatches(numbered(10), 4)
    assert [len(batch.caption) for batch in batches] == [4, 4, 2] and len(batches) == 3
    assert all_rows(batches).caption.tolist() == list(range(10))


# ---- training ----


def training(folder, name, config="denoiser", **changes):
    """The command line of a short training on resident latents, with the shipped parts of the teacher."""
    settings = shipped_config(f"glyphs/{config}")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings["trainer"] |= {"accelerator": "cpu", "devices": 1, "strategy": "auto", "callbacks": [], **quiet}
    settings["trainer"] |= {"max_steps": 6, "val_check_interval": 6, "log_every_n_steps": 1, "limit_val_batches": 1}
    settings["trainer"]["logger"]["init_args"] |= {"save_dir": str(folder), "name": name}
    data = {"vae": str(embedded("teacher/vae")), "resident": True, "batch_size": 16, **COUNTS}
    settings["data"]["init_args"] |= data
    for section, values in changes.items():
        settings[section] = settings[section] | values if section == "trainer" else settings[section]
        if section != "trainer":
            settings[section]["init_args"] |= values
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["fit", "-c", str(file)]


def copied_parts(folder):
    """A pipeline directory with the shipped autoencoder, tokenizer and text encoder."""
    for part in ("vae", "text_encoder", "tokenizer"):
        target = folder / part
        target.mkdir(parents=True)
        for file in embedded(f"teacher/{part}").iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    return folder


def small_unet():
    return shipped_config("glyphs/denoiser")["model"]["init_args"]["unet"] | {"block_out_channels": [16, 16, 16]}


def losses(folder, curve="train/loss"):
    return [curves(folder)[curve, step] for step in range(6)]


def test_a_training_on_resident_latents_is_reproducible_and_writes_a_pipeline(tmp_path):
    model = {"pipeline": str(copied_parts(tmp_path / "teacher")), "unet": small_unet()}
    for name in ("once", "again"):
        main(training(tmp_path, name, model=model))
    assert losses(tmp_path / "once") == losses(tmp_path / "again")
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert teacher.denoiser.config.block_out_channels == [16, 16, 16]


def test_texts_of_resident_captions_are_those_of_the_text_encoder(resident):
    """What conditions the UNet: the row of a table for each caption, row 0 for a dropped one."""
    config = shipped_config("glyphs/denoiser")["model"]["init_args"]
    module = DenoiserTraining(embedded("teacher"), small_unet(), config["scheduler"], torch.optim.AdamW, 10)
    module.trainer = resident.trainer
    module.trainer.datamodule = resident
    module.on_fit_start()
    rows = torch.tensor([3, 0, 7])
    expected = module._encode([resident.captions[row] for row in rows])
    torch.testing.assert_close(module._encode(rows), expected, atol=2e-3, rtol=2e-3)
    module.caption_dropout = 1.0
    assert not module._drop(rows).any() and module._drop(["digit 7"]) == [""]
    module.caption_dropout = 0.0
    assert torch.equal(module._drop(rows), rows)


def test_the_perceptual_network_trains_on_resident_latents(tmp_path):
    target = tmp_path / "vgg.safetensors"
    main(training(tmp_path, "vgg", "latent_vgg", model={"vae": str(embedded("teacher/vae")), "target": str(target)}))
    assert target.is_file() and len(losses(tmp_path / "vgg")) == 6


def test_a_training_ends_after_its_seconds_and_writes_the_pipeline(tmp_path):
    pipeline = copied_parts(tmp_path / "teacher")
    model = {"pipeline": str(pipeline), "unet": small_unet(), "seconds": 4.0, "warmup": 1, "cooldown": 6000}
    endless = {"max_steps": -1, "max_epochs": -1, "val_check_interval": 100000}
    main(training(tmp_path, "timed", trainer=endless, model=model))
    steps = [step for name, step in curves(tmp_path / "timed") if name == "train/loss"]
    assert len(steps) > 2 and max(steps) > 2
    assert load_teacher(str(pipeline)).denoiser.config.block_out_channels == [16, 16, 16]


def test_nothing_of_a_step_is_computed_on_the_processor():
    """Meta tensors stand for a GPU's: an operation on them and on tensors of the CPU fails."""
    meta = torch.device("meta")
    encoding = LatentEncoding(embedded("teacher/vae"), meta, workers=0)
    data = encoding.encode("validation", 24, 0)
    assert data.latent.shape == (24, 3, 16, 16) and {column.device for column in data} == {meta}
    batch = next(iter(ResidentBatches(data, 8, partial(epoch_order, 24, 0, 0))))
    config = shipped_config("glyphs/denoiser")["model"]["init_args"]
    module = DenoiserTraining(embedded("teacher"), small_unet(), config["scheduler"], torch.optim.AdamW, 10).to(meta)
    module._texts = module._encode(encoding.captions).half()
    t = stratified_timesteps(8, 1000, module.device)
    loss = module.denoising_loss(Velocity(module.unet), batch.latent, module._drop(batch.caption), t)
    loss.backward()
    assert loss.device == meta and module.unet.conv_in.weight.grad.device == meta
