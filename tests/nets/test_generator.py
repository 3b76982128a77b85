"""The one-step generator equals one step of stock diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler

from diffgan.nets.generator import OneStepGenerator
from diffgan.teachers.registry import load_teacher
from diffgan.teachers.schedule import SCHEDULER_SETTINGS


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_one_step_equals_stock_ddim(tiny_pipeline, prediction_type, zero_snr):
    if zero_snr and prediction_type == "epsilon":
        pytest.skip("epsilon says nothing about x at zero signal")
    teacher = load_teacher(str(tiny_pipeline))
    settings = {**SCHEDULER_SETTINGS, "prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    scheduler = DDIMScheduler.from_config(teacher.scheduler.config, **settings)
    z, c = torch.randn(2, *teacher.latent_shape), teacher.encode(["digit 7", ""])
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    with torch.no_grad():
        stock = scheduler.step(teacher.unet(z, t, **c.arguments()).sample, t, z).prev_sample
        torch.testing.assert_close(OneStepGenerator(teacher.unet, scheduler)(z, c), stock, rtol=1e-5, atol=1e-5)
    assert t == scheduler.config.num_train_timesteps - 1
