"""Faster modes that also run on a CPU: compiled networks, bfloat16."""

import os
import subprocess
import sys

import pytest

from diffgan.__main__ import main
from diffgan.pairs.pair_set import PairSet
from tests.pair_sets import PAIRS, contents
from tests.runs import assert_same_weights, checkpoint, curves, named, use_large_adam_eps, write


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_networks_train_like_eager_ones(adversarial_config, tmp_path):
    """Regression, then adversarial steps with the eager penalty, then validation; weights agree within rounding."""
    use_large_adam_eps(adversarial_config)
    adversarial_config["trainer"]["val_check_interval"] = 6
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    compiled = write(tmp_path / "compiled.yaml", named(adversarial_config, "compiled"))
    main(["fit", "-c", compiled, "--model.init_args.compile", "true"])
    assert_same_weights(tmp_path / "run", tmp_path / "compiled", exactly=False, atol=1e-5, rtol=1e-3)


def test_bfloat16_follows_float32(adversarial_config, tmp_path):
    """Losses are close; weights, averages and optimizer states stay float32; the penalty is computed in float32."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    half = write(tmp_path / "half.yaml", named(adversarial_config, "half"))
    main(["fit", "-c", half, "--trainer.precision", "bf16-mixed"])
    kept = checkpoint(tmp_path / "half")
    assert {str(weight.dtype) for weight in kept["state_dict"].values()} == {"torch.float32"}
    expected, logged = curves(tmp_path / "run"), curves(tmp_path / "half")
    assert logged.keys() - expected.keys() == {("health/bf16_rms", 0)} and expected.keys() <= logged.keys()
    for name in ("g/regression", "d/loss"):
        points = [key for key in expected if key[0] == name]
        assert all(logged[key].pop() == pytest.approx(expected[key].pop(), rel=0.05) for key in points), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_pairs_are_those_of_the_eager_network(command, unbroken, tmp_path):
    """Equal within the rounding of float16; another process writes the same bytes."""
    words = command(tmp_path / "compiled", "--model.init_args.compile=true")
    main(words)
    made, expected = (PairSet(folder).read(range(PAIRS)) for folder in (tmp_path / "compiled", unbroken))
    assert (made.latent - expected.latent).abs().max() < 2e-3
    again = command(tmp_path / "again", "--model.init_args.compile=true")
    subprocess.run([sys.executable, "-m", "diffgan", *again], check=True, timeout=600)
    assert contents(tmp_path / "again") == contents(tmp_path / "compiled")


def test_machine_that_cannot_compile_is_reported_in_one_line(command, tmp_path):
    words = command(tmp_path / "compiled", "--model.init_args.compile=true")
    nowhere = {"CXX": "/nowhere/g++", "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-m", "diffgan", *words], env=os.environ | nowhere, capture_output=True)
    assert run.returncode == 1
    error = run.stderr.decode()
    assert "diffgan: error: compile: torch.compile failed" in error and "C++ compiler" in error
    assert "Traceback" not in error
