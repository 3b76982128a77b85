"""A training with the discriminator."""

import pytest


@pytest.fixture
def adversarial_config(config):
    """48 images in batches of 8, adversarial from the second batch on, a gradient penalty at every other step."""
    arguments = config["model"]["init_args"]
    arguments["regression"] = {"class_path": "diffgan.losses.regression.MSE"}
    arguments["adversarial"] = {
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
