"""The base class of methods, with a method of three networks, and micro-batches."""

import lightning.pytorch as pl
import pytest
import torch

from diffgan.__main__ import main
from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses.regression import MSE
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.micro_batches import MicroBatch, Samples, check_micro_batches, mismatch, split, take
from diffgan.methods.optimization import AlternatingOptimization
from diffgan.nets.discriminator import MultiScaleDiscriminator
from tests.methods.three_networks import ThreeNetworks
from tests.runs import assert_same_weights, checkpoint, curves, named, refused, write

NAMES = ("generator.", "discriminator.", "student.")


@pytest.fixture
def three_networks(config, tiny_pipeline):
    """48 images in batches of 8; the third network starts after 16."""
    config["model"] = {
        "class_path": "tests.methods.three_networks.ThreeNetworks",
        "init_args": {
            "teacher": str(tiny_pipeline),
            "images": 48,
            "starts_at_images": 16,
            "regression": {"class_path": "diffgan.losses.regression.MSE"},
        },
    }
    config["trainer"]["val_check_interval"] = 100
    config["seed_everything"] = 0
    return config


def test_each_network_has_its_optimizer(three_networks, tmp_path, tiny_pipeline):
    """All three are trained and saved; optimizer states are keyed by names of weights; curves by names of networks."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", three_networks)])
    saved = checkpoint(tmp_path / "run")
    assert len(saved["optimizer_states"]) == 3
    for prefix, state in zip(NAMES, saved["optimizer_states"], strict=True):
        weights = {name for name in saved["state_dict"] if name.startswith(prefix)}
        assert weights and state["state"].keys() == weights
    model = ThreeNetworks(str(tiny_pipeline), MSE(), 48)
    model.configure_model()
    for prefix in NAMES:
        name = f"{prefix}unet.conv_in.weight"
        assert not torch.equal(saved["state_dict"][name], model.state_dict()[name])
    logged = curves(tmp_path / "run")
    starts = {name: min(images for curve, images in logged if curve == f"{name}/gradient_norm") for name in "gds"}
    assert starts == {"g": 8, "d": 8, "s": 24}


def test_interrupted_training_of_three_networks_equals_the_uninterrupted_one(three_networks, tmp_path):
    main(["fit", "-c", write(tmp_path / "fit.yaml", three_networks)])
    interrupted = named(three_networks, "interrupted")
    for images in (16, 32, 48):
        interrupted["model"]["init_args"]["images"] = images
        main(["fit", "-c", write(tmp_path / "interrupted.yaml", interrupted)])
    assert_same_weights(tmp_path / "run", tmp_path / "interrupted")


def test_curves_of_every_network_are_no_monitors(three_networks, tmp_path, capsys):
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "s/gradient_norm"}}
    three_networks["trainer"]["callbacks"].append(stopping)
    error = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", three_networks))
    assert "EarlyStopping: monitor s/gradient_norm" in error and "validation/mse" in error


def micro_batch_inputs():
    noise, latent = torch.randn(8, 4, 2, 2), torch.randn(8, 4, 2, 2)
    return noise, latent, Conditioning(torch.arange(8.0)[:, None, None])


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_micro_batches_have_the_rows_of_the_batch(count):
    """Mismatched rows take the inputs of their neighbours in the batch, also where each row is a micro-batch."""
    noise, latent, conditioning = micro_batch_inputs()
    pairs, kinds = Samples(latent, noise, conditioning), torch.tensor([0, 1, 2, 3, 0, 0, 0, 0])
    batch = MicroBatch(pairs, mismatch(pairs, kinds), kinds, torch.zeros(8, 1, 1, 1))
    micro_batches = split(batch, count)
    assert [len(micro_batch.kinds) for micro_batch in micro_batches] == [8 // count] * count
    rows = take(micro_batches, list(range(8)))
    assert torch.equal(rows.noise, noise) and torch.equal(rows.latent, latent)
    assert torch.equal(rows.conditioning.text, conditioning.text)
    fakes = [part.fake(torch.zeros_like(part.pairs.latent)) for part in micro_batches]
    generated = torch.zeros(4, 4, 2, 2)
    joined = torch.cat([fake.latent for fake in fakes])
    assert torch.equal(joined, torch.cat([generated[:1], latent[[1, 2, 2]], generated]))
    assert torch.equal(torch.cat([fake.noise for fake in fakes]), noise[[0, 1, 3, 3, 4, 5, 6, 7]])
    text = torch.cat([fake.conditioning.text for fake in fakes])
    assert text.flatten().tolist() == [0, 0, 2, 3, 4, 5, 6, 7]
    rows = take(micro_batches, [5, 2])
    assert torch.equal(rows.noise, noise[[5, 2]]) and rows.conditioning.text.flatten().tolist() == [5, 2]


@pytest.mark.parametrize("count", [0, 3, 16])
def test_unequal_micro_batches_are_refused(count):
    with pytest.raises(UserError, match="accumulate: 8 pairs"):
        check_micro_batches(8, count)


def test_rows_of_the_gradient_penalty():
    """Every second step from the start on, one row after the other; none with gamma 0."""
    settings = {"starts_at_images": 16, "r1_every": 2, "r1_samples": 2}
    adversarial = AdversarialTraining(MultiScaleDiscriminator, torch.optim.SGD, **settings)
    rows = [adversarial.penalised_rows(images_seen, 8, 1) for images_seen in range(16, 64, 8)]
    assert rows == [[0, 4], [], [1, 5], [], [2, 6], []]
    assert adversarial.penalised_rows(32, 4, 2) == [1]
    assert [adversarial.warmed_up(images) for images in (16, 515, 1015, 9999)] == [0.001, 0.5, 1.0, 1.0]
    off = AdversarialTraining(MultiScaleDiscriminator, torch.optim.SGD, **settings, r1_gamma=0.0)
    assert off.penalised_rows(16, 8, 1) == []


class OneNetwork(AlternatingOptimization):
    """Accumulates gradients of a linear layer."""

    def __init__(self):
        super().__init__({})
        self.networks = {"g": torch.nn.Linear(4, 4)}
        self.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def test_passes_with_gradient_use_no_cast_of_another_pass():
    """Where autocast caches, as in Lightning before and after 2.6: each micro-batch casts the weights anew."""
    module, inputs = OneNetwork(), torch.ones(2, 4)
    network, casts = module.networks["g"], []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        with torch.set_grad_enabled(False):
            network(inputs)
        for (rows,) in module.accumulate("g", inputs.split(1)):
            output = network(rows)
            casts.append(output.grad_fn.next_functions[0][0])  # of the bias
            output.sum().backward()
    assert "ToCopy" in casts[0].name() and casts[0] is not casts[1]
    assert torch.equal(network.bias.grad, torch.full((4,), 2.0)) and network.weight.grad.abs().min() > 0
