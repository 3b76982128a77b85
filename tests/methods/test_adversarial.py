"""Adversarial training through the command: the algorithm, micro-batches, settings."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from datamodules.latent_pairs import EpochOrder
from diffgan.__main__ import main
from diffgan.conditioning import Conditioning
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.nets.generator import OneStepGenerator
from diffgan.pairs.pair_set import PairSet
from diffgan.teachers.registry import load_teacher
from tests.runs import (
    adversarial_settings,
    assert_same_weights,
    checkpoint,
    curves,
    named,
    refused,
    use_large_adam_eps,
    write,
)


def reference(folder, pipeline, batches, balanced):
    """The algorithm written out in plain torch, on the training pairs in the order of their numbers."""
    teacher = load_teacher(str(pipeline))
    generator = OneStepGenerator(copy.deepcopy(teacher.unet).requires_grad_(True), teacher.scheduler)
    torch.manual_seed(0)
    discriminator = MultiScaleDiscriminator(teacher.unet)
    optimizer_g = torch.optim.SGD(generator.parameters(), 1e-2)
    optimizer_d = torch.optim.SGD(discriminator.parameters(), 1e-2)
    averages = [0.0, 0.0]
    for step in range(batches):
        batch = PairSet(folder).read(range(8 * step, 8 * step + 8))
        z, x, c = batch.noise, batch.latent, teacher.encode(batch.prompt)
        fake = generator(z, c)
        fakes, noises, text = fake.detach().clone(), z.clone(), c.text.clone()
        for i, row in enumerate((1, 5)):
            fakes[row] = x[row]
            kind = (2 * step + i) % 3
            if kind == 0:
                text[row] = c.text[row - 1]
            elif kind == 1:
                noises[row] = z[row - 1]
            else:
                fakes[row] = x[row - 1]
        logits = lambda *inputs: [r.logits for r in discriminator(*inputs)]  # noqa: E731
        outs = zip(logits(x, z, c), logits(fakes, noises, Conditioning(text)), strict=True)
        loss_d = sum(F.softplus(-r).mean() + F.softplus(f).mean() for r, f in outs)
        optimizer_d.zero_grad()
        (loss_d / 6).backward()
        if step % 2 == 0:
            rows = [step // 2, step // 2 + 4]
            point = x[rows].clone().requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):
                outs = discriminator(point, z[rows], c.map(lambda t: t[rows]))  # noqa: B023
            score = sum(r.logits.mean((1, 2, 3)) for r in outs).sum() / 6
            (gradient,) = torch.autograd.grad(score, point, create_graph=True)
            (0.5 * 3.0 * 2 * gradient.square().sum() / 2).backward()
        optimizer_d.param_groups[0]["lr"] = 1e-2 * min(1, (8 * step + 1) / 20)
        optimizer_d.step()
        adversarial = sum(F.softplus(-r).mean() for r in logits(fake, z, c)) / 6
        regression = (fake - x).square().mean()
        norms = [torch.autograd.grad(loss, fake, retain_graph=True)[0].norm() for loss in (regression, adversarial)]
        averages = [0.99 * mean + 0.01 * norm.square() for mean, norm in zip(averages, norms, strict=True)]
        rise = min(1, (8 * step + 1) / 20)
        optimizer_g.param_groups[0]["lr"] = 0.5 * 1e-2
        weight = rise * 0.5 * ((averages[0] / averages[1]) ** 0.5 if balanced else 1.0)
        optimizer_g.zero_grad()
        (regression + weight * adversarial).backward()
        optimizer_g.step()
    return generator, discriminator


@pytest.mark.parametrize("balanced", [False, True])
def test_training_equals_the_algorithm_in_plain_torch(
    adversarial_config, pairs, tiny_pipeline, tmp_path, monkeypatch, balanced
):
    """Both networks after four batches equal a transcription of the algorithm in plain torch."""
    in_order = lambda pairs, *_: EpochOrder(np.arange(pairs), np.zeros(1, np.int64), np.full(1, pairs))  # noqa: E731
    monkeypatch.setattr("datamodules.latent_pairs.shuffled", in_order)
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-2}}
    adversarial_config["model"]["init_args"] |= {
        "images": 32,
        "warmup_images": 1,
        "clip_norm": 1e9,
        "generator_optimizer": plain,
    }
    plain_d = plain | {"init_args": {"lr": 1e-2}}
    adversarial_settings(adversarial_config).update(
        starts_at_images=0, warmup_images=20, generator_rate=0.5, clip_norm=1e9, optimizer=plain_d
    )
    adversarial_settings(adversarial_config).update(r1_gamma=3.0, weight=0.5, balanced=balanced)
    adversarial_config["seed_everything"] = 0
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    weights = checkpoint(tmp_path / "run")["state_dict"]
    for name, network in zip(("generator", "discriminator"), reference(pairs, tiny_pipeline, 4, balanced), strict=True):
        for parameter, weight in network.named_parameters():
            if name == "discriminator" and parameter.startswith("heads"):
                continue  # drawn at random; that they agree shows in all other weights
            trained = weights[f"{name}.{parameter}"]
            message = lambda m, p=parameter: f"{p}: {m}"  # noqa: E731
            torch.testing.assert_close(trained, weight.detach(), atol=2e-6, rtol=1e-4, msg=message)


@pytest.mark.parametrize(("precision", "rounding"), [("32-true", 1), ("bf16-mixed", 200)])
def test_micro_batches_do_not_change_the_result(adversarial_config, tmp_path, precision, rounding):
    """Of four micro-batches the gradients and the logged values have the same sums and means as of the whole batch."""
    adversarial_config["trainer"]["precision"] = precision
    adversarial_config["model"]["init_args"]["images"] = 24
    adversarial_settings(adversarial_config).update(balanced=True)
    use_large_adam_eps(adversarial_config)
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    micro_batches = named(adversarial_config, "split")
    micro_batches["model"]["init_args"] |= {"accumulate": 4, "gradient_checkpointing": True}
    main(["fit", "-c", write(tmp_path / "split.yaml", micro_batches)])
    assert_same_weights(tmp_path / "run", tmp_path / "split", exactly=False, atol=rounding * 5e-6, rtol=1e-4)
    whole, split = curves(tmp_path / "run"), curves(tmp_path / "split")
    for name in ("g/regression", "g/gan", "g/gradient_ratio", "d/score_real", "d/score_fake", "d/loss"):
        expected = pytest.approx(whole[name, 16].pop(), abs=rounding * 1e-5, rel=rounding * 1e-4)
        assert split[name, 16].pop() == expected, name


def test_r1_mix_and_match_and_inputs_can_be_switched_off(adversarial_config, tmp_path):
    adversarial_settings(adversarial_config).update(r1_gamma=0.0, mismatch_share=0.0)
    adversarial_settings(adversarial_config)["discriminator"]["init_args"] = {
        "from_teacher": False,
        "noise_conditioning": False,
        "multi_scale": False,
    }
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    names = checkpoint(tmp_path / "run")["state_dict"]
    assert not any("noise_in" in name or "latent_in" in name for name in names)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert "d/accuracy_fake" in metrics and not any("mismatched" in name for name in metrics)
    assert not any(name == "d/r1" for name, _ in curves(tmp_path / "run"))


def test_user_mistakes_end_with_one_line(adversarial_config, tmp_path, capsys):
    valid = write(tmp_path / "fit.yaml", adversarial_config)
    options = "--model.init_args.adversarial.init_args"
    for words, reason in (
        (["--model.init_args.accumulate", "3"], "accumulate"),
        ([f"{options}.input_noise", "-0.1"], "input_noise"),
        ([f"{options}.r1", "approximate"], "r1"),
        ([f"{options}.mismatch_share", "1.5"], "mismatch_share"),
        ([f"{options}.r1_every", "0"], "r1_every"),
        ([f"{options}.weight", "-1"], "weight"),
        ([f"{options}.clip_norm", "0"], "clip_norm"),
        ([f"{options}.generator_rate", "0"], "generator_rate"),
        (["--model.init_args.clip_norm", "-1"], "clip_norm"),
        ([f"{options}.r1_samples", "16"], "r1_samples"),
        ([f"{options}.r1_samples", "3"], "r1_samples"),
        ([f"{options}.starts_at_images", "48"], "starts_at_images"),
        ([f"{options}.r1_noise", "true", f"{options}.discriminator.init_args.noise_conditioning", "false"], "r1_noise"),
        (["--trainer.gradient_clip_val", "1"], "gradient clipping"),
        (["--trainer.accumulate_grad_batches", "2"], "accumulate"),
        (["--trainer.precision", "64-true"], "precision"),
        (["--trainer.strategy", "fsdp"], "requires a GPU"),
        (["--trainer.strategy", "ddp"], "configs/strategies/ddp.yaml"),
    ):
        assert reason in refused(capsys, "fit", "-c", valid, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()
