"""How often the networks of a training are compiled."""

import collections
from functools import partial

import lightning.pytorch as pl
import pytest
import torch

from callbacks.ema import EMA
from datamodules.latent_pairs import LatentPairs
from diffgan.losses.regression import MSE
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator


class CountCompilations(pl.Callback):
    """Compiles the networks as `compile: true` does, by a compiler that counts its calls and changes nothing.

    Attributes:
        after_batches: by network the number of compilations until the end of each batch.
    """

    def __init__(self):
        self.count, self.after_batches = collections.Counter(), []

    def on_fit_start(self, trainer, pl_module):
        for name, network in pl_module.networks.items():
            network.compile(backend=partial(self._compile, name))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after_batches.append(dict(self.count))

    def _compile(self, name, graph, inputs):
        self.count[name] += 1
        return graph.forward


@pytest.mark.parametrize(("accumulate", "passes_of_g"), [(1, 1), (2, 2)])
def test_each_network_is_compiled_once_for_each_of_its_passes(accumulate, passes_of_g, tiny_pipeline, pairs, tmp_path):
    """G with gradient, and with micro-batches without; D for its own step, and for the generator's.

    Neither R1, validation, nor the change of the trained network compiles anything anew.
    """
    optimizer = partial(torch.optim.AdamW, lr=1e-4)
    adversarial = AdversarialTraining(MultiScaleDiscriminator, optimizer, r1_every=2, starts_at_images=8)
    module = Diffusion2GAN(str(tiny_pipeline), MSE(), optimizer, 40, adversarial=adversarial, accumulate=accumulate)
    counter = CountCompilations()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[EMA(1000.0), counter],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, LatentPairs(pairs, 8, validation_pairs=8))
    assert counter.after_batches == [{"g": passes_of_g}] + [{"g": passes_of_g, "d": 2}] * 4
