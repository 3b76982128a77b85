"""Every prediction type inverts the forward process z = alpha x0 + sigma eps."""

import pytest
import torch

from diffgan.teachers.prediction import to_x0

ALPHA, SIGMA = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_x0_inverts_the_forward_process(prediction_type):
    torch.manual_seed(0)
    x, eps = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    z = ALPHA * x + SIGMA * eps
    prediction = {"epsilon": eps, "v_prediction": ALPHA * eps - SIGMA * x, "sample": x}[prediction_type]
    torch.testing.assert_close(to_x0(prediction, z, ALPHA, SIGMA, prediction_type), x)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_x0_has_the_precision_of_z(prediction_type):
    """Under autocast the prediction has fewer bits."""
    z, prediction = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    assert to_x0(prediction, z, ALPHA.float(), SIGMA.float(), prediction_type).dtype == torch.float32


def test_an_unknown_prediction_type_is_an_error():
    with pytest.raises(ValueError, match="'flow' is not one of epsilon, v_prediction, sample"):
        to_x0(torch.ones(1), torch.ones(1), ALPHA, SIGMA, "flow")
