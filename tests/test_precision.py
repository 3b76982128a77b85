"""Ways to run faster that a processor can try too: compiled networks, bfloat16."""

import pytest

from diffgan.__main__ import main
from tests.runs import checkpoint, named, write
from tests.test_adversarial import curves, game, same_weights, settle  # noqa: F401


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_networks_train_as_eager_ones(game, tmp_path):  # noqa: F811
    """Regression, then the game with its eager penalty, then validation; weights agree within rounding."""
    settle(game)
    game["trainer"]["val_check_interval"] = 6
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    compiled = write(tmp_path / "compiled.yaml", named(game, "compiled"))
    main(["fit", "-c", compiled, "--model.init_args.compile", "true"])
    same_weights(tmp_path / "run", tmp_path / "compiled", exactly=False, atol=1e-5, rtol=1e-3)


def test_bfloat16_follows_float32(game, tmp_path):  # noqa: F811
    """Losses stay near; weights, averages and optimizer states stay float32; the penalty is taken in float32."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", game)])
    half = write(tmp_path / "half.yaml", named(game, "half"))
    main(["fit", "-c", half, "--trainer.precision", "bf16-mixed"])
    kept = checkpoint(tmp_path / "half")
    assert {str(weight.dtype) for weight in kept["state_dict"].values()} == {"torch.float32"}
    expected, found = curves(tmp_path / "run"), curves(tmp_path / "half")
    assert found.keys() == expected.keys()
    for name in ("g/regression", "d/loss"):
        points = [key for key in expected if key[0] == name]
        assert all(found[key].pop() == pytest.approx(expected[key].pop(), rel=0.05) for key in points), name
