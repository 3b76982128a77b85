import pytest
import torch
from diffusers import DDIMScheduler

from diffgan.nets.generator import OneStepGenerator, clean_latent
from diffgan.teachers.base import SCHEDULER
from diffgan.teachers.registry import load_teacher


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_clean_latent_inverts_the_forward_process(prediction_type):
    torch.manual_seed(0)
    x, eps = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    z = alpha * x + sigma * eps
    prediction = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x, "sample": x}[prediction_type]
    torch.testing.assert_close(clean_latent(prediction, z, alpha, sigma, prediction_type), x)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_one_step_equals_stock_ddim(tiny_pipeline, prediction_type, zero_snr):
    if zero_snr and prediction_type == "epsilon":
        pytest.skip("epsilon says nothing about x at zero signal")
    teacher = load_teacher(str(tiny_pipeline))
    settings = {**SCHEDULER, "prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    scheduler = DDIMScheduler.from_config(teacher.scheduler.config, **settings)
    z, c = torch.randn(2, *teacher.latent_shape), teacher.encode(["digit 7", ""])
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    with torch.no_grad():
        stock = scheduler.step(teacher.unet(z, t, **c.arguments()).sample, t, z).prev_sample
        torch.testing.assert_close(OneStepGenerator(teacher.unet, scheduler)(z, c), stock, rtol=1e-5, atol=1e-5)
    assert t == scheduler.config.num_train_timesteps - 1
