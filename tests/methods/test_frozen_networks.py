"""Where the frozen teacher and the moving average are during a training; the other device is `meta`."""

import lightning.pytorch as pl
import pytest
import torch

from callbacks.ema import EMA, relative_distance
from callbacks.sample_grid import SampleGrid
from datamodules.latent_pairs import LatentPairs
from diffgan.__main__ import main
from diffgan.losses.regression import MSE
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.pairs.pair_set import PairSet
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import load_teacher
from tests.processes import run_on_two_processes
from tests.runs import assert_same_weights, checkpoint, curves, named, refused, use_large_adam_eps, write

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def devices(module):
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


@pytest.fixture
def model(tiny_pipeline):
    """With a discriminator, built on the CPU and moved to the other device."""
    torch.manual_seed(0)
    settings = AdversarialTraining(MultiScaleDiscriminator, torch.optim.SGD)
    model = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8, adversarial=settings)
    model.configure_model()
    return model.to("meta")


# ---- the teacher ----


def test_a_training_step_uses_of_the_teacher_its_text_encoders_at_most(model, pairs):
    batch = model.transfer_batch_to_device(PairSet(pairs).read(range(4)), torch.device("meta"), 0)
    assert devices(model.teacher) == {"cpu"} and devices(model.generator) == devices(model.discriminator) == {"meta"}
    micro_batches = model.split_batch(batch)
    (generated,) = model.generate(micro_batches)
    assert generated.is_meta and micro_batches[0].pairs.conditioning.text.is_meta
    model.output_gradients(micro_batches, [generated])
    assert devices(model.teacher.text_encoder) == {"meta"}
    assert devices(model.teacher.unet) == devices(model.teacher.vae) == {"cpu"}
    model.teardown("fit")
    assert devices(model.teacher) == {"cpu"}


def test_cached_conditioning_needs_no_text_encoder(model, pairs):
    batch = PairSet(pairs).read(range(4))
    cached = model.transfer_batch_to_device(
        batch._replace(conditioning=model.teacher.encode(batch.prompt)), torch.device("meta"), 0
    )
    (generated,) = model.generate(model.split_batch(cached))
    assert generated.is_meta and devices(model.teacher) == {"cpu"}


def test_the_teacher_is_on_the_device_while_a_callback_draws(model):
    """Encoding, the student's call and decoding; afterwards everything is as before, after an error too."""
    noise = torch.empty(2, *model.teacher.latent_shape, device="meta")
    before = list(model.teacher.parameters())
    with model.teacher_on_device(denoiser=False) as teacher, model.average_on_device() as generator:
        assert teacher is model.teacher and generator is model.generator_ema
        assert devices(teacher.vae) == devices(teacher.text_encoder) == {"meta"} and devices(teacher.unet) == {"cpu"}
        assert teacher.decode(generator(noise, teacher.encode(["digit 7", ""]))).shape == (2, 3, 32, 32)
    with pytest.raises(RuntimeError, match="while drawing"), model.teacher_on_device() as teacher:
        assert devices(teacher) == {"meta"}
        raise RuntimeError("while drawing")
    assert all(now is parameter for now, parameter in zip(model.teacher.parameters(), before, strict=True))


def test_text_encoders_elsewhere_than_the_network_can_guide_it(tiny_pipeline):
    teacher = load_teacher(str(tiny_pipeline))
    teacher.text_encoder.to("meta")
    assert teacher.device.type == "cpu" and teacher.text_device.type == "meta"
    assert teacher.encode(["digit 7"]).text.is_meta and teacher.unconditional(2).text.is_meta


def test_the_teacher_is_no_submodule(model):
    assert not [name for name, _ in model.named_parameters() if name.startswith("teacher")]
    assert not [name for name in model.state_dict() if name.startswith("teacher")]
    assert {name.split(".")[0] for name in model.state_dict()} == {"generator", "discriminator", "generator_ema"}


class Observer(pl.Callback):
    """Notes precisions, and what the text encoder's output is, at the end of the first batch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        teacher = pl_module.teacher
        self.text, self.unet, self.vae = (
            next(m.parameters()).dtype for m in (teacher.text_encoder, teacher.unet, teacher.vae)
        )
        self.rows = teacher.encode(["digit 7"]).text
        self.digest = pl_module.teacher_digest


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_text_encoders_are_in_bfloat16_in_a_fit_of_mixed_precision(tiny_pipeline, pairs, tmp_path, precision):
    """The digest is that of float32; conditioning stays float32, rounded."""
    seen = Observer()
    model = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8)
    data = LatentPairs(pairs, batch_size=8, validation_pairs=8)
    trainer = pl.Trainer(
        precision=precision, callbacks=[seen], default_root_dir=tmp_path, max_epochs=-1, num_sanity_val_steps=0, **QUIET
    )
    trainer.fit(model, data)
    teacher = load_teacher(str(tiny_pipeline))
    exact, lower = teacher.encode(["digit 7"]).text, precision == "bf16-mixed"
    assert seen.text == (torch.bfloat16 if lower else torch.float32)
    assert seen.unet == seen.vae == seen.rows.dtype == torch.float32
    assert seen.digest == weights_digest(teacher)
    assert torch.equal(seen.rows, exact) != lower
    torch.testing.assert_close(seen.rows, exact, atol=0.1, rtol=0.05)


# ---- the moving average ----


def on_cpu(config, name):
    other = named(config, name)
    (average,) = (c for c in other["trainer"]["callbacks"] if c["class_path"] == "callbacks.ema.EMA")
    average["init_args"]["on_cpu"] = True
    return other


def test_an_average_on_the_cpu_stays_there(tiny_pipeline, tmp_path):
    model = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8)
    trainer = pl.Trainer(default_root_dir=tmp_path, **QUIET)
    plain = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8)
    plain.configure_model()
    EMA(1000, on_cpu=True).setup(trainer, model, "fit")
    model.configure_model()
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict({name: weight + 1 for name, weight in plain.state_dict().items()}, strict=True)
    for name, weight in plain.generator_ema.state_dict().items():
        assert torch.equal(model.generator_ema.state_dict()[name], weight + 1)
    model.to("meta")
    assert devices(model.generator) == {"meta"} and devices(model.generator_ema) == {"cpu"}
    model.on_validation_start()
    assert devices(model.generator_ema) == {"meta"}
    with model.average_on_device():
        pass
    assert devices(model.generator_ema) == {"meta"}
    model.on_validation_end()
    assert devices(model.generator_ema) == {"cpu"}
    assert relative_distance(model.generator_ema, plain.generator).isfinite()


def test_a_run_with_it_is_the_run_without_it(config, tmp_path):
    """Weights and curves, to the bit; each resumes from the other's checkpoint."""
    config["model"]["init_args"]["images"] = 24
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    host = write(tmp_path / "host.yaml", on_cpu(config, "host"))
    main(["fit", "-c", host])
    assert_same_weights(tmp_path / "run", tmp_path / "host")
    assert list(checkpoint(tmp_path / "run")["state_dict"]) == list(checkpoint(tmp_path / "host")["state_dict"])
    assert curves(tmp_path / "run") == curves(tmp_path / "host")
    longer = ["--model.init_args.images", "40"]
    main(["fit", "-c", str(tmp_path / "fit.yaml"), *longer])
    main(["fit", "-c", host, *longer])
    assert_same_weights(tmp_path / "run", tmp_path / "host")
    main(["test", "-c", host])


def test_it_works_with_ddp_and_is_refused_with_fsdp(adversarial_config, tmp_path):
    adversarial_config["model"]["init_args"]["images"] = 24
    use_large_adam_eps(adversarial_config)
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    words = ["fit", "-c", write(tmp_path / "host.yaml", on_cpu(adversarial_config, "host")), "-c"]
    assert run_on_two_processes([*words, "configs/strategies/ddp.yaml", "--trainer.devices", "2"]) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "host", exactly=False, atol=5e-6, rtol=1e-4)
    errors = tmp_path / "errors"
    words[2] = write(tmp_path / "sharded.yaml", on_cpu(adversarial_config, "sharded"))
    words += ["configs/strategies/fsdp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words, errors=errors) == [1, 1]
    assert "EMA: on_cpu is not supported with FSDP2" in errors.read_text()
    assert "Traceback" not in errors.read_text()


# ---- the rounding error ----


@pytest.mark.parametrize("strategy", [None, "ddp", "fsdp"])
def test_the_rounding_error_is_logged_once_under_mixed_precision(config, tmp_path, strategy):
    """With float32_output under FSDP2, whose classes of modules are its own."""
    config["model"]["init_args"] |= {"images": 16, "float32_output": strategy == "fsdp"}
    words = ["fit", "-c", write(tmp_path / "fit.yaml", config), "--trainer.precision", "bf16-mixed"]
    if strategy is None:
        main(words)
    else:
        more = ["-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "2"]
        assert run_on_two_processes([*words, *more]) == [0, 0]
    logged = {key: values for key, values in curves(tmp_path / "run").items() if key[0] == "health/bf16_rms"}
    assert list(logged) == [("health/bf16_rms", 0)] and 1e-4 < logged["health/bf16_rms", 0].pop() < 1


def test_float32_has_no_rounding_error_to_log(config, tmp_path, capsys):
    config["model"]["init_args"]["images"] = 8
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    assert not [key for key in curves(tmp_path / "run") if key[0] == "health/bf16_rms"]
    config["model"]["init_args"]["timesteps"] = [5000]
    assert "timesteps: 5000" in refused(capsys, "fit", "-c", write(tmp_path / "bad.yaml", named(config, "bad")))


def test_a_grid_is_drawn_from_an_average_on_the_cpu(tiny_pipeline, tmp_path):
    model = Diffusion2GAN(str(tiny_pipeline), MSE(), torch.optim.SGD, images=8)
    trainer = pl.Trainer(default_root_dir=tmp_path, **QUIET)
    EMA(1000, on_cpu=True).setup(trainer, model, "fit")
    model.configure_model()
    grid = SampleGrid(["digit 7"], steps=2)
    grid.setup(trainer, model, "fit")
    assert grid.draw(trainer, model).is_file()
