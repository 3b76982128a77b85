"""Adversarial training on two processes equals that on one."""

import json

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.training.strategies import FSDP2Strategy, check_strategy
from tests.processes import run_on_two_processes
from tests.runs import adversarial_settings, assert_same_weights, named, use_large_adam_eps, write


@pytest.mark.parametrize(
    ("strategy", "r1"),
    [
        ("ddp", "exact"),
        ("fsdp", "finite_difference"),
        pytest.param("ddp", "finite_difference", marks=pytest.mark.slow),
        pytest.param("fsdp", "exact", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(adversarial_config, tmp_path, strategy, r1):
    """D with mismatched rows of all kinds, R1, balanced G and moving average after six batches; one file each.

    Finite differences divide by a small step, which makes rounding errors larger.
    """
    loose = 4 if r1 == "finite_difference" else 1
    use_large_adam_eps(adversarial_config)
    adversarial_settings(adversarial_config).update(r1=r1, mismatch_share=0.5)
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    together = write(tmp_path / "together.yaml", named(adversarial_config, "together"))
    words = ["fit", "-c", together, "-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=loose * 5e-6, rtol=1e-4)
    if strategy == "fsdp":
        longer = ["--model.init_args.images", "64"]
        assert run_on_two_processes([*words, *longer]) == [0, 0]
        main(["fit", "-c", str(tmp_path / "fit.yaml"), *longer])
        assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=loose * 1e-5, rtol=1e-4)
        main(["export", str(tmp_path / "together"), str(tmp_path / "student")])
        for path in (tmp_path / "fit.yaml", together):  # resumed on one process again
            main(["fit", "-c", str(path), "--model.init_args.images", "80"])
        assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=loose * 2e-5, rtol=1e-4)


@pytest.mark.parametrize("step", ["regression", "d", "r1", "g"])
@pytest.mark.slow
def test_each_step_of_two_processes_equals_that_of_one(adversarial_config, tmp_path, step):
    """Plain gradient descent of one network and one loss at a time."""
    still, moving = ({"class_path": "torch.optim.SGD", "init_args": {"lr": lr}} for lr in (0.0, 1e-2))
    arguments = adversarial_config["model"]["init_args"]
    arguments["generator_optimizer"] = moving if step in ("g", "regression") else still
    adversarial_settings(adversarial_config).update(
        optimizer=moving if step in ("d", "r1") else still, starts_at_images=0, warmup_images=1
    )
    adversarial_settings(adversarial_config).update(
        r1_gamma=1e3 if step == "r1" else 0.0, weight=0.0 if step == "regression" else 1.0
    )
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    together = write(tmp_path / "together.yaml", named(adversarial_config, "together"))
    words = ["fit", "-c", together, "-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=1e-6, rtol=1e-5)


def test_run_of_one_process_resumes_sharded_over_two(adversarial_config, tmp_path):
    """Weights and optimizers saved by one process are loaded by two."""
    use_large_adam_eps(adversarial_config)
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    more = named(adversarial_config, "more")
    more["model"]["init_args"]["images"] = 24
    main(["fit", "-c", write(tmp_path / "more.yaml", more)])
    words = ["-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "2", "--model.init_args.images", "48"]
    assert run_on_two_processes(["fit", "-c", str(tmp_path / "more.yaml"), *words]) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "more", exactly=False, atol=5e-6, rtol=1e-4)


def test_unsupported_strategies_are_refused():
    for strategy in (FSDPStrategy(), ModelParallelStrategy(), DDPStrategy()):
        with pytest.raises(UserError, match=r"configs/strategies/(ddp|fsdp)\.yaml"):
            check_strategy(strategy, 2)
    check_strategy(DDPStrategy(), 1)
    check_strategy(FSDP2Strategy(), 2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradient_that_is_not_finite_ends_both_processes(adversarial_config, tmp_path, strategy):
    adversarial_config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 1e30
    words = ["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)]
    words += ["-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words, errors=tmp_path / "errors") == [1, 1]
    assert "the gradient's norm was nan after" in only_error(tmp_path / "errors")


def only_error(file):
    """The error that one of the processes has printed for all."""
    text = file.read_text()
    (line,) = [line for line in text.splitlines() if "diffgan: error: " in line]
    assert "Traceback" not in text
    return line


class ElsewhereWithoutTeacher(pl.Callback):
    """The second process has no teacher."""

    def setup(self, trainer, pl_module, stage):
        if trainer.global_rank == 1:
            pl_module.teacher_path = "nowhere"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_process_refuses_ends_both(adversarial_config, tmp_path, strategy):
    callback = {"class_path": "tests.methods.test_several_processes.ElsewhereWithoutTeacher"}
    adversarial_config["trainer"]["callbacks"].append(callback)
    words = ["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)]
    words += ["-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words, errors=tmp_path / "errors") == [1, 1]
    assert "teacher nowhere" in only_error(tmp_path / "errors")


def test_what_both_refuse_is_printed_once(adversarial_config, tmp_path):
    average, *_ = adversarial_config["trainer"]["callbacks"]
    average["init_args"]["on_cpu"] = True
    words = ["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)]
    words += ["-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words, errors=tmp_path / "errors") == [1, 1]
    assert "EMA: on_cpu is not supported with FSDP2" in only_error(tmp_path / "errors")


def test_ddp_averages_the_gradients_of_the_network_that_moves(adversarial_config, tmp_path):
    """A step of D averages those of D, and once more with R1; a step of G those of G."""
    file = tmp_path / "bytes.json"
    adversarial_config["trainer"]["callbacks"].append(
        {"class_path": "tests.bench.reduced_bytes.ReducedBytes", "init_args": {"file": str(file)}}
    )
    adversarial_config["model"]["init_args"]["images"] = 32
    words = ["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)]
    assert run_on_two_processes([*words, "-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]) == [0, 0]
    record = json.loads(file.read_text())
    g, d = record["weights"]["g"], record["weights"]["d"]
    assert record["bytes"][1:] == [2 * d + g, d + g, 2 * d + g]
