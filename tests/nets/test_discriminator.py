"""The discriminator on networks of every Stable Diffusion family, small."""

import pytest
import torch
from diffusers import Transformer2DModel, UNet2DConditionModel

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.losses.gan import score
from diffgan.losses.gradient_penalty import exact_squared_norm, full_precision
from diffgan.nets.discriminator import PLACES, MultiScaleDiscriminator
from diffgan.teachers.registry import load_teacher

SMALL = {"sample_size": 8, "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 16}
SD1 = SMALL | {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
}
SD2 = SD1 | {"attention_head_dim": (1, 2, 2), "use_linear_projection": True}
SDXL = SMALL | {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (1, 2),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
FAMILIES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}


def network(config):
    torch.manual_seed(0)
    return UNet2DConditionModel(**config)


def inputs(config, count=2, size=8):
    torch.manual_seed(1)
    pooled = (torch.randn(count, 16), torch.randn(count, 6)) if "addition_embed_type" in config else (None, None)
    return (
        torch.randn(count, 4, size, size),
        torch.randn(count, 4, size, size),
        Conditioning(torch.randn(count, 5, 16), *pooled),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [8, 10])  # 10 does not halve twice
def test_initial_features_are_the_teachers(family, size):
    """Zero-initialised layers change nothing: the last stage's output is that of diffusers' own forward pass."""
    unet, (x, z, c) = network(FAMILIES[family]).eval(), inputs(FAMILIES[family], size=size)
    inputs_of_output = []
    unet.conv_norm_out.register_forward_pre_hook(lambda _, args: inputs_of_output.append(args[0]))
    with torch.no_grad():
        unet(x, 0, **c.arguments())
        ours = MultiScaleDiscriminator(unet).eval().features(x, z, c)
    torch.testing.assert_close(ours[-1][2], inputs_of_output[0], atol=1e-5, rtol=1e-5)


def test_initial_features_are_the_glyph_teachers():
    teacher = load_teacher("glyphs")
    x, z, c = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16), teacher.encode(["digit 7"])
    inputs_of_output = []
    teacher.unet.conv_norm_out.register_forward_pre_hook(lambda _, args: inputs_of_output.append(args[0]))
    with torch.no_grad():
        teacher.unet(x, 0, **c.arguments())
        ours = MultiScaleDiscriminator(teacher.unet).features(x, z, c)
    torch.testing.assert_close(ours[-1][2], inputs_of_output[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_before_on_and_after_the_skip_of_every_scale(family):
    unet, (x, z, c) = network(FAMILIES[family]), inputs(FAMILIES[family])
    read_outs = MultiScaleDiscriminator(unet)(x, z, c)
    stages = len(unet.up_blocks)
    assert [(r.scale, r.place) for r in read_outs] == [(s, p) for s in range(stages) for p in PLACES]
    sizes = [8 // 2 ** (stages - 1 - r.scale) for r in read_outs]
    assert [tuple(r.logits.shape) for r in read_outs] == [(2, 1, size, size) for size in sizes]


@pytest.mark.parametrize("name", ["latent", "noise", "text", "pooled"])
def test_every_read_out_depends_on_every_input(name):
    """With zero convolutions that are no longer zero, each input has a gradient at every scale."""
    discriminator, (x, z, c) = MultiScaleDiscriminator(network(SDXL)), inputs(SDXL)
    for conv in (discriminator.noise_in, *discriminator.latent_in):
        torch.nn.init.normal_(conv.weight, std=0.1)
    tensor = {"latent": x, "noise": z, "text": c.text, "pooled": c.pooled}[name].requires_grad_(True)
    for read_out in discriminator(x, z, c):
        if name == "text" and (read_out.scale, read_out.place) == (1, "skip"):
            continue  # the first stage of the encoder has no attention
        (gradient,) = torch.autograd.grad(read_out.logits.sum(), tensor, retain_graph=True)
        assert gradient.abs().sum() > 0, read_out[:2]


def test_zero_layers_have_gradients_from_the_first_step():
    discriminator, (x, z, c) = MultiScaleDiscriminator(network(SD1)), inputs(SD1)
    score(discriminator(x, z, c)).sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert discriminator.noise_in.weight.grad.abs().sum() > 0
    assert all(conv.weight.grad.abs().sum() > 0 for conv in discriminator.latent_in)


def test_noise_conditioning_and_multi_scale_are_optional():
    unet, (x, z, c) = network(SD1), inputs(SD1)
    plain = MultiScaleDiscriminator(unet, noise_conditioning=False, multi_scale=False)
    assert [(r.scale, r.place) for r in plain(x, z, c)] == [(2, "after")]
    assert torch.equal(plain(x, z, c)[0].logits, plain(x, -z, c)[0].logits)
    assert len(plain.latent_in) == 0


def test_weights_are_the_teachers_or_random_and_the_teacher_is_unchanged():
    unet = network(SD1)
    copied, random = MultiScaleDiscriminator(unet), MultiScaleDiscriminator(unet, from_teacher=False)
    assert torch.equal(copied.unet.conv_in.weight, unet.conv_in.weight)
    assert not torch.equal(random.unet.conv_in.weight, unet.conv_in.weight)
    with torch.no_grad():
        copied.unet.conv_in.weight.zero_()
    assert unet.conv_in.weight.abs().sum() > 0 and unet.up_blocks[0].upsamplers is not None


def test_samples_of_a_batch_are_independent():
    discriminator, (x, z, c) = MultiScaleDiscriminator(network(SD1)), inputs(SD1)
    both, one = discriminator(x, z, c), discriminator(x[:1], z[:1], c.map(lambda t: t[:1]))
    for batched, alone in zip(both, one, strict=True):
        torch.testing.assert_close(batched.logits[:1], alone.logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_second_derivatives_equal_finite_differences(checkpointing):
    """The penalty's gradient with respect to weights, along a direction, in float64."""
    discriminator = MultiScaleDiscriminator(network(SD1)).double()
    if checkpointing:
        discriminator.unet.enable_gradient_checkpointing()
    x, z, c = inputs(SD1, count=1)
    x, z, c = x.double(), z.double(), c.map(torch.Tensor.double)

    def penalty():
        double = lambda latent, noise: sum(r.logits.mean() for r in discriminator(latent, noise, c))[None]  # noqa: E731
        return exact_squared_norm(double, x, z, with_noise=False)[0].sum()

    weights = list(discriminator.unet.parameters())
    with full_precision(torch.device("cpu"), second_derivatives=True):
        penalty().backward()
    direction = [torch.randn_like(w) for w in weights]
    analytic = sum((w.grad * d).sum() for w, d in zip(weights, direction, strict=True) if w.grad is not None)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(weights, direction, alpha=sign * 1e-6)
        values.append(penalty().item())
        with torch.no_grad():
            torch._foreach_add_(weights, direction, alpha=-sign * 1e-6)
    assert analytic.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_a_network_of_another_class_is_refused_by_name():
    transformer = Transformer2DModel(num_attention_heads=1, attention_head_dim=4, in_channels=4, norm_num_groups=2)
    with pytest.raises(UserError, match="is a Transformer2DModel, MultiScaleDiscriminator takes a UNet"):
        MultiScaleDiscriminator(transformer)


def test_a_network_with_other_blocks_is_refused_by_name():
    odd = network(SD1)
    odd.register_to_config(up_block_types=("AttnUpBlock2D",) * 3)
    with pytest.raises(UserError, match="AttnUpBlock2D"):
        MultiScaleDiscriminator(odd)
