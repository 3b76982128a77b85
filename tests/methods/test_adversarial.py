"""The game of two players through the command: the algorithm, its parts, resuming, processes."""

import copy
import json
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgan.__main__ import main
from diffgan.cli.plot import smoothed
from diffgan.errors import UserError
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.nets.generator import OneStepGenerator
from diffgan.pairs.pair_set import PairSet
from diffgan.teachers.registry import load_teacher
from diffgan.training.strategies import FSDP2Strategy, check_strategy
from tests.processes import run_on_two_processes, start, start_two_processes
from tests.runs import checkpoint, curves, named, refused, write


@pytest.fixture
def game(config):
    """48 images in batches of 8, the adversary from the second batch on, a penalty every other step."""
    arguments = config["model"]["init_args"]
    arguments["regression"] = {"class_path": "diffgan.losses.regression.MSE"}
    arguments["adversary"] = {
        "class_path": "diffgan.methods.adversarial.AdversarialTraining",
        "init_args": {
            "discriminator": {"class_path": "diffgan.nets.discriminator.MultiScaleDiscriminator"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.0, 0.99]}},
            "starts_at_images": 8,
            "warmup_images": 8,
            "r1_every": 2,
            "r1_samples": 2,
        },
    }
    config["trainer"]["val_check_interval"] = 100
    return config


def adversary(config):
    return config["model"]["init_args"]["adversary"]["init_args"]


def settle(game):
    """Adam makes steps of rounding errors, where two runs are only nearly equal, unless its eps forbids it."""
    for optimizer in (game["model"]["init_args"]["generator_optimizer"], adversary(game)["optimizer"]):
        optimizer["init_args"]["eps"] = 1e-3


def same_weights(run, other, exactly=True, **tolerance):
    one, two = checkpoint(run), checkpoint(other)
    assert one["images_seen"] == two["images_seen"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, weight in one["state_dict"].items():
        if exactly:
            assert torch.equal(weight, two["state_dict"][name]), name
        else:
            torch.testing.assert_close(two["state_dict"][name], weight, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def reference(folder, pipeline, batches, balanced):
    """The algorithm written out in plain torch, on the training pairs in the order of their numbers."""
    teacher = load_teacher(str(pipeline))
    generator = OneStepGenerator(copy.deepcopy(teacher.unet).requires_grad_(True), teacher.scheduler)
    torch.manual_seed(0)
    discriminator = MultiScaleDiscriminator(teacher.unet)
    optimizer_g = torch.optim.SGD(generator.parameters(), 1e-2)
    optimizer_d = torch.optim.SGD(discriminator.parameters(), 1e-2)
    for step in range(batches):
        batch = PairSet(folder).read(range(8 * step, 8 * step + 8))
        z, x, c = batch.noise, batch.latent, teacher.encode(batch.prompt)
        fake = generator(z, c)
        fakes = fake.detach().clone()
        fakes[[1, 5]] = x[[0, 4]]
        logits = lambda latent: [r.logits for r in discriminator(latent, z, c)]  # noqa: E731, B023
        loss_d = sum(
            F.softplus(-r).mean() + F.softplus(f).mean() for r, f in zip(logits(x), logits(fakes), strict=True)
        )
        optimizer_d.zero_grad()
        (loss_d / 6).backward()
        if step % 2 == 0:
            rows = [step // 2, step // 2 + 4]
            point = x[rows].clone().requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):
                outs = discriminator(point, z[rows], c.map(lambda t: t[rows]))  # noqa: B023
            opinion = sum(r.logits.mean((1, 2, 3)) for r in outs).sum() / 6
            (gradient,) = torch.autograd.grad(opinion, point, create_graph=True)
            (0.5 * 3.0 * 2 * gradient.square().sum() / 2).backward()
        optimizer_d.step()
        adversarial = sum(F.softplus(-r).mean() for r in logits(fake)) / 6
        regression = (fake - x).square().mean()
        slopes = [torch.autograd.grad(loss, fake, retain_graph=True)[0].norm() for loss in (regression, adversarial)]
        weight = 0.5 * (slopes[0] / slopes[1] if balanced else 1.0)
        optimizer_g.zero_grad()
        (regression + weight * adversarial).backward()
        optimizer_g.step()
    return generator, discriminator


@pytest.mark.parametrize("balanced", [False, True])
def test_training_is_the_algorithm(game, pairs, tiny_pipeline, tmp_path, monkeypatch, balanced):
    """Both players after four batches equal a transcription of the algorithm in plain torch."""
    monkeypatch.setattr("datamodules.latent_pairs.shuffled", lambda pairs, *_: torch.arange(pairs).numpy())
    plain = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-2}}
    game["model"]["init_args"] |= {"images": 32, "warmup_images": 1, "clip_norm": 1e9, "generator_optimizer": plain}
    adversary(game).update(starts_at_images=0, warmup_images=1, clip_norm=1e9, optimizer=plain)
    adversary(game).update(r1_gamma=3.0, weight=0.5, balanced=balanced)
    game["seed_everything"] = 0
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    weights = checkpoint(tmp_path / "run")["state_dict"]
    for name, network in zip(("generator", "discriminator"), reference(pairs, tiny_pipeline, 4, balanced), strict=True):
        for part, weight in network.named_parameters():
            if name == "discriminator" and part.startswith("heads"):
                continue  # drawn at random; that they agree shows in all other weights
            found = weights[f"{name}.{part}"]
            torch.testing.assert_close(found, weight.detach(), atol=2e-6, rtol=1e-4, msg=lambda m, p=part: f"{p}: {m}")


def test_accumulation_changes_nothing_but_memory(game, tmp_path):
    """In four parts: the generator runs again for its own move, gradients add up to the same, logged values too."""
    adversary(game).update(balanced=True)
    settle(game)
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    parts = named(game, "parts")
    parts["model"]["init_args"] |= {"accumulate": 4, "gradient_checkpointing": True}
    main(["fit", "-c", write(tmp_path / "parts.yaml", parts)])
    same_weights(tmp_path / "run", tmp_path / "parts", exactly=False, atol=5e-6, rtol=1e-4)
    whole, parted = curves(tmp_path / "run"), curves(tmp_path / "parts")
    for name in ("g/regression", "g/adversarial", "g/gradient_ratio", "d/real", "d/fake", "d/loss"):
        assert parted[name, 16].pop() == pytest.approx(whole[name, 16].pop(), abs=1e-5), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_play_as_one(game, tmp_path, strategy):
    """D, R1, G and average of both strategies, after six batches; the checkpoint is one whole file."""
    settle(game)
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    together = write(tmp_path / "together.yaml", named(game, "together"))
    words = ["fit", "-c", together, "-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=5e-6, rtol=1e-4)
    if strategy == "fsdp":
        longer = ["--model.init_args.images", "64"]
        assert run_on_two_processes([*words, *longer]) == [0, 0]
        main(["fit", "-c", str(tmp_path / "fit.yaml"), *longer])
        same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=1e-5, rtol=1e-4)
        main(["export", str(tmp_path / "together"), str(tmp_path / "student")])
        for path in (tmp_path / "fit.yaml", together):  # and on as one process again
            main(["fit", "-c", str(path), "--model.init_args.images", "80"])
        same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("player", ["regression", "d", "r1", "g"])
@pytest.mark.slow
def test_each_move_of_two_processes_is_the_joint_one(game, tmp_path, player):
    """Plain steps downhill, one player's at a time."""
    still, moving = ({"class_path": "torch.optim.SGD", "init_args": {"lr": lr}} for lr in (0.0, 1e-2))
    arguments = game["model"]["init_args"]
    arguments["generator_optimizer"] = moving if player in ("g", "regression") else still
    adversary(game).update(optimizer=moving if player in ("d", "r1") else still, starts_at_images=0, warmup_images=1)
    adversary(game).update(r1_gamma=1e3 if player == "r1" else 0.0, weight=0.0 if player == "regression" else 1.0)
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    together = write(tmp_path / "together.yaml", named(game, "together"))
    words = ["fit", "-c", together, "-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=1e-6, rtol=1e-5)


def test_a_run_goes_on_in_shards_over_more_processes(game, tmp_path):
    """What one process saved, weights and optimizers, two load as it was."""
    settle(game)
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    more = named(game, "more")
    more["model"]["init_args"]["images"] = 24
    main(["fit", "-c", write(tmp_path / "more.yaml", more)])
    words = ["-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "2", "--model.init_args.images", "48"]
    assert run_on_two_processes(["fit", "-c", str(tmp_path / "more.yaml"), *words]) == [0, 0]
    same_weights(tmp_path / "run", tmp_path / "more", exactly=False, atol=5e-6, rtol=1e-4)


def test_parts_can_be_left_out_by_configuration(game, tmp_path):
    adversary(game).update(r1_gamma=0.0, mismatch_share=0.0)
    adversary(game)["discriminator"]["init_args"] = {
        "from_teacher": False,
        "noise_conditioning": False,
        "multi_scale": False,
    }
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    names = checkpoint(tmp_path / "run")["state_dict"]
    assert not any("noise_in" in name or "latent_in" in name for name in names)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert "d/right_about_fake" in metrics and "d/mismatched" not in metrics
    assert not any(name == "d/r1" for name, _ in curves(tmp_path / "run"))


def kill_somewhere(words, folder, seconds):
    """kill -9 some time after the first checkpoint."""
    child = start(words)
    last = folder / "checkpoints" / "last.ckpt"
    while not last.exists() and child.is_alive():
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def test_killed_three_times_it_ends_as_the_unbroken_run(game, tmp_path):
    """Weights, averages, both optimizers and every logged loss, to the bit."""
    game["model"]["init_args"]["images"] = 240
    adversary(game)["starts_at_images"] = 40
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    path = write(tmp_path / "killed.yaml", named(game, "killed"))
    for seconds in (0.05, 0.4, 0.9):
        kill_somewhere(["fit", "-c", path], tmp_path / "killed", seconds)
    main(["fit", "-c", path])
    same_weights(tmp_path / "run", tmp_path / "killed")
    whole, broken = (checkpoint(tmp_path / name)["optimizer_states"] for name in ("run", "killed"))
    for one, two in zip(whole, broken, strict=True):
        for i, state in one["state"].items():
            assert all(torch.equal(value, two["state"][i][name]) for name, value in state.items())
    expected, found = curves(tmp_path / "run"), curves(tmp_path / "killed")
    assert len(found) > 0.9 * len(expected)  # a kill loses what was logged after a checkpoint and not yet on disk
    assert found == {point: expected[point] for point in found}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 10), (2, 5)])
def test_killed_at_random_it_ends_as_the_unbroken_run(game, tmp_path, processes, kills):
    """To the bit on one process, within float error on two."""
    game["model"]["init_args"]["images"] = 640 if processes == 1 else 320
    game["trainer"]["callbacks"][1]["init_args"]["every_images"] = 32
    settle(game)
    run = (lambda words: main(words) or [0]) if processes == 1 else run_on_two_processes
    strategy = [] if processes == 1 else ["-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]
    assert run(["fit", "-c", write(tmp_path / "fit.yaml", game), *strategy]) == [0] * processes
    words = ["fit", "-c", write(tmp_path / "killed.yaml", named(game, "killed")), *strategy]
    random = torch.Generator().manual_seed(0)
    for _ in range(kills):
        seconds = torch.rand((), generator=random).item() * (2 if processes == 1 else 6)
        if processes == 1:
            kill_somewhere(words, tmp_path / "killed", seconds)
        else:
            kill_both(words, tmp_path / "killed", seconds)
    assert run(words) == [0] * processes
    exact = processes == 1
    same_weights(
        tmp_path / "run", tmp_path / "killed", exactly=exact, **({} if exact else {"atol": 1e-5, "rtol": 1e-4})
    )


def kill_both(words, folder, seconds):
    """kill -9 of two processes some time after the first checkpoint."""
    ranks = start_two_processes(words)
    last = folder / "checkpoints" / "last.ckpt"
    while not last.exists() and all(rank.is_alive() for rank in ranks):
        time.sleep(0.01)
    time.sleep(seconds)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    for rank in ranks:
        rank.join()


def test_regression_goes_on_as_a_game(game, tmp_path, capsys):
    """A checkpoint without discriminator: it begins there, as it would have begun; the way back is refused."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    alone = named(game, "alone")
    del alone["model"]["init_args"]["adversary"]
    alone["model"]["init_args"]["images"] = 8
    main(["fit", "-c", write(tmp_path / "alone.yaml", alone)])
    before = str(tmp_path / "alone" / "checkpoints" / "last.ckpt")
    main(["fit", "-c", write(tmp_path / "joined.yaml", named(game, "joined")), "--ckpt_path", before])
    same_weights(tmp_path / "run", tmp_path / "joined")
    after = tmp_path / "run" / "checkpoints" / "last.ckpt"
    refusal = refused(capsys, "fit", "-c", tmp_path / "alone.yaml", "--ckpt_path", after)
    assert "another model" in refusal and "discriminator" in refusal


def test_regression_goes_on_as_a_game_in_shards(game, tmp_path):
    """The discriminator begins there; one of another shape is refused by every process in one line."""
    settle(game)
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    alone = named(game, "alone")
    del alone["model"]["init_args"]["adversary"]
    alone["model"]["init_args"]["images"] = 8
    main(["fit", "-c", write(tmp_path / "alone.yaml", alone)])
    joined = write(tmp_path / "joined.yaml", named(game, "joined"))
    words = ["fit", "-c", joined, "-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "2", "--ckpt_path"]
    assert run_on_two_processes([*words, str(tmp_path / "alone" / "checkpoints" / "last.ckpt")]) == [0, 0]
    same_weights(tmp_path / "run", tmp_path / "joined", exactly=False, atol=5e-6, rtol=1e-4)
    smaller = "--model.init_args.adversary.init_args.discriminator.init_args.multi_scale"
    words = [*words, str(tmp_path / "run" / "checkpoints" / "last.ckpt"), smaller, "false"]
    assert run_on_two_processes(words, errors=tmp_path / "errors") == [1, 1]
    said = (tmp_path / "errors").read_text()
    assert "another model: discriminator" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(game, tmp_path, number):
    game["model"]["init_args"]["images"] = 100_000
    game["trainer"]["callbacks"][1]["init_args"]["every_images"] = 4000
    game["trainer"]["val_check_interval"] = 3
    path = write(tmp_path / "fit.yaml", game)
    child = start(["fit", "-c", path])
    while not list((tmp_path / "run").glob("samples/*.png")) and child.is_alive():
        time.sleep(0.05)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 128 + number
    seen = checkpoint(tmp_path / "run")["images_seen"]
    game["model"]["init_args"]["images"] = seen + 16
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    assert checkpoint(tmp_path / "run")["images_seen"] == seen + 16


def test_broken_checkpoint_is_named_and_the_one_before_offered(game, tmp_path, capsys):
    path = write(tmp_path / "fit.yaml", game)
    main(["fit", "-c", path])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    middle = whole.index(b"archive/data/") + len(whole) // 3
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    for damaged in (whole[:-1000], flipped, (tmp_path / "other.ckpt").read_bytes()):
        last.write_bytes(damaged)
        refusal = refused(capsys, "fit", "-c", path)
        assert str(last) in refusal and "broken" in refusal and "--ckpt_path previous" in refusal
    main(["fit", "-c", path, "--ckpt_path", "previous"])
    assert (last.parent / "broken.ckpt").exists()
    assert checkpoint(tmp_path / "run")["images_seen"] == 48


def test_mistakes_are_one_line(game, tmp_path, capsys):
    good = write(tmp_path / "fit.yaml", game)
    options = "--model.init_args.adversary.init_args"
    for words, reason in (
        (["--model.init_args.accumulate", "3"], "accumulate"),
        ([f"{options}.mismatch_share", "0.01"], "mismatch_share"),
        ([f"{options}.mismatch_share", "1.5"], "mismatch_share"),
        ([f"{options}.r1_every", "0"], "r1_every"),
        ([f"{options}.weight", "-1"], "weight"),
        ([f"{options}.clip_norm", "0"], "clip_norm"),
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
        assert reason in refused(capsys, "fit", "-c", good, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_strategies_that_train_or_resume_wrongly_are_refused():
    for strategy in (FSDPStrategy(), ModelParallelStrategy(), DDPStrategy()):
        with pytest.raises(UserError, match=r"configs/strategies/(ddp|fsdp)\.yaml"):
            check_strategy(strategy, networks=2)
    check_strategy(DDPStrategy(), networks=1)
    check_strategy(FSDP2Strategy(), networks=2)


def health(**changes):
    arguments = {"prompts": ["digit 7"], "noises": 4, "every_images": 16, "patience_images": 32, "steps": 2} | changes
    return {"class_path": "callbacks.training_health.TrainingHealth", "init_args": arguments}


def test_health_is_logged(game, tmp_path):
    game["trainer"]["callbacks"].append(health())
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    found = curves(tmp_path / "run")
    steps = [step for name, step in found if name == "health/diversity"]
    assert sorted(steps) == [16, 32, 48]
    assert all(value > 0 for (name, _), values in found.items() if name == "health/diversity" for value in values)


def test_watch_draws_the_curves_of_a_run(game, tmp_path, capsys):
    game["trainer"]["callbacks"].append(health())
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    main(["watch", str(tmp_path / "run"), str(tmp_path / "health.png")])
    assert "health.png: 10 curves" in capsys.readouterr().out
    assert Image.open(tmp_path / "health.png").size[0] == 1200
    assert "no TensorBoard curves" in refused(capsys, "watch", tmp_path / "nothing", tmp_path / "x.png")


def test_smoothing_keeps_means():
    curve = [(i, float(i)) for i in range(1, 241)]
    assert len(smoothed(curve)) == 60 and smoothed(curve)[0] == (2.5, 2.5)
    assert smoothed(curve[:3]) == curve[:3]


@pytest.mark.parametrize(
    ("changes", "reason"), [({"least_diversity": 1e9}, "diversity"), ({"saturated_at": -1.0}, "discriminator")]
)
def test_a_run_gone_wrong_ends_with_its_last_good_checkpoint(game, tmp_path, capsys, changes, reason):
    game["trainer"]["callbacks"].append(health(**{"least_diversity": 0.0} | changes))
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", game))
    assert reason in refusal and "last.ckpt" in refusal and "32 images" in refusal


def test_the_checkpoint_before_the_trouble_is_kept(game, tmp_path, capsys):
    """Fine for 16 images, then called collapsed: what `good.ckpt` holds is from before."""
    fine = copy.deepcopy(game)
    fine["trainer"]["callbacks"].append(health(least_diversity=0.0, saturated_at=2.0))
    path = write(tmp_path / "fit.yaml", fine)
    main(["fit", "-c", path, "--model.init_args.images", "16"])
    game["trainer"]["callbacks"].append(health(least_diversity=1e9, saturated_at=2.0))
    game["model"]["init_args"]["images"] = 80
    assert "good.ckpt" in refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", game))
    good = torch.load(tmp_path / "run" / "checkpoints" / "good.ckpt", weights_only=True)
    assert good["images_seen"] <= 16 < checkpoint(tmp_path / "run")["images_seen"]


def test_not_a_number_ends_the_run(game, tmp_path, capsys):
    game["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 1e30
    game["trainer"]["callbacks"][1]["init_args"]["every_images"] = 8
    refusal = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", game))
    assert "gradient's norm is" in refusal and "last.ckpt" in refusal
