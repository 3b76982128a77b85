"""The discriminator of diffusion transformers, on a tiny random network of every family."""

import copy

import pytest
import torch

from diffgan.errors import UserError
from diffgan.losses.gradient_penalty import METHODS, exact_squared_norm, full_precision
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.nets.generator import OneStepGenerator
from diffgan.nets.lora import LoRA
from diffgan.nets.transformer_discriminator import TransformerDiscriminator
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher
from tests.pipelines import TRANSFORMERS, saved

PROMPTS = ["digit 7", "a bold capital A in red on cream"]


@pytest.fixture(scope="module", params=["pixart", "sd3", "flux"])
def teacher(request, tmp_path_factory):
    folder = saved(TRANSFORMERS[request.param], tmp_path_factory.mktemp("family") / request.param)
    return load_teacher(str(folder), size=(32, 32))


@pytest.fixture
def inputs(teacher):
    x, z = draw_noise(range(4), teacher.latent_shape).chunk(2)
    return x, z, teacher.encode(PROMPTS)


def built(teacher, **options):
    torch.manual_seed(0)
    return TransformerDiscriminator(teacher.denoiser, **{"depths": 3} | options)


def test_begins_with_the_teachers_features(teacher, inputs):
    """Whatever z is; and what stock diffusers computes in its last block."""
    x, z, c = inputs
    kept, network = [], teacher.denoiser
    adapter = OneStepGenerator(network, teacher.scheduler).adapter
    last = adapter.blocks(network)[-1]
    hook = last.register_forward_hook(lambda block, args, output: kept.append(output))
    with torch.no_grad():
        adapter.predict(network, x, 0, c)
        features = built(teacher).features(x, z, c)
        others = built(teacher, noise_conditioning=False).features(x, -z, c)
    hook.remove()
    expected = kept[0][1] if isinstance(kept[0], tuple) else kept[0]  # (N, T, width)
    assert len(features) == 3 and features[-1].shape[-2:] == (4, 4)
    torch.testing.assert_close(features[-1].flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features, others, atol=1e-5, rtol=1e-5)


def test_tokens_lie_where_their_patches_do(teacher, inputs):
    """A change of one patch of x changes the first block's features most at its place in the map."""
    x, z, c = inputs
    discriminator, changed = built(teacher), x.clone()
    changed[:, :, 2:4, 6:8] += 3  # row 1, column 3 of the 4x4 patches
    with torch.no_grad():
        change = (discriminator.features(changed, z, c)[0] - discriminator.features(x, z, c)[0]).norm(dim=1)
    assert change.flatten(1).argmax(dim=1).tolist() == [7, 7]


def test_z_and_text_are_seen_once_trained(teacher, inputs):
    x, z, c = inputs
    discriminator = built(teacher)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    whole = [read_out.logits for read_out in discriminator(x, z, c)]
    assert [logits.shape for logits in whole] == [(2, 1, 4, 4)] * 3
    for other in (discriminator(x, -z, c), discriminator(x, z, c.map(lambda rows: rows.flip(0)))):
        assert all((read_out.logits - logits).abs().max() > 1e-4 for read_out, logits in zip(other, whole, strict=True))
    rows = [read_out.logits for read_out in discriminator(x[:1], z[:1], c.map(lambda rows: rows[:1]))]
    for alone, together in zip(rows, whole, strict=True):
        torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=1e-4)


def test_every_weight_gets_a_gradient(teacher, inputs):
    """Nothing of the removed output is left; the network that was copied has none."""
    discriminator = built(teacher)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    sum(read_out.logits.mean() for read_out in discriminator(*inputs)).backward()
    missing = [name for name, weight in discriminator.named_parameters() if weight.grad is None]
    assert all("context" in name or "add_" in name or "norm1_context" in name for name in missing), missing
    assert all(weight.grad is None for weight in teacher.denoiser.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_changes_nothing_and_keeps_nothing(teacher, inputs, checkpointing):
    plain, other = built(teacher), built(teacher)
    if checkpointing:
        other.enable_gradient_checkpointing()
    for discriminator in (plain, other):
        sum(read_out.logits.square().mean() for read_out in discriminator(*inputs)).backward()
        assert discriminator._features is None
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_both_gradient_penalties_agree(teacher, inputs):
    """Along a direction of the weights the exact penalty's derivative is the difference of its values, in float64."""
    x, z, c = (part.double() if isinstance(part, torch.Tensor) else part for part in inputs)
    c = c.map(lambda rows: rows.double() if rows.is_floating_point() else rows)
    discriminator = built(teacher).double()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def penalty():
        score = lambda latent, noise: sum(r.logits.mean() for r in discriminator(latent, noise, c))[None]  # noqa: E731
        return exact_squared_norm(score, x, z, with_noise=False)[0].sum()

    weights = list(discriminator.parameters())
    with full_precision(torch.device("cpu"), second_derivatives=True):
        penalty().backward()
    direction = [torch.randn_like(weight) for weight in weights]
    analytic = sum((w.grad * d).sum() for w, d in zip(weights, direction, strict=True) if w.grad is not None)
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            torch._foreach_add_(weights, direction, alpha=step)
        values.append(penalty().item())
    assert analytic.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-3)
    assert set(METHODS) == {"exact", "finite_difference"}


def test_a_copy_is_independent(teacher, inputs):
    discriminator = built(teacher)
    copied = copy.deepcopy(discriminator)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
        assert all(read_out.logits.abs().max() == 0 for read_out in discriminator(*inputs))
        assert all(read_out.logits.abs().max() > 0 for read_out in copied(*inputs))


def test_the_wrong_network_is_refused(teacher, tmp_path_factory):
    from tests.pipelines import unet

    with pytest.raises(UserError, match="for a UNet name MultiScaleDiscriminator"):
        TransformerDiscriminator(unet())
    with pytest.raises(UserError, match="for a transformer name TransformerDiscriminator"):
        MultiScaleDiscriminator(teacher.denoiser)
    with pytest.raises(UserError, match="depths is 9 and must be from 1 to 3"):
        built(teacher, depths=9)


def test_adapters_on_the_layer_that_is_widened(teacher, inputs):
    """It has weights of its own, which are trained as a whole."""
    layer = "x_embedder" if hasattr(teacher.denoiser, "x_embedder") else "pos_embed.proj"
    lora = LoRA(2, targets=[layer, "to_q", "proj_out"])
    with_lora, plain = built(teacher, lora=lora), built(teacher)
    assert with_lora.transformer.get_submodule(layer).weight.requires_grad
    assert any("to_q.lora_A" in name for name, _ in with_lora.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(with_lora.features(*inputs), plain.features(*inputs), atol=1e-5, rtol=1e-5)
