"""The generator's output in float32 under bfloat16 autocast."""

import copy

import pytest
import torch

from diffgan.errors import UserError
from diffgan.methods.rounding import bf16_rms
from diffgan.nets.float32 import compute_in_float32
from diffgan.nets.generator import OneStepGenerator
from diffgan.noise import draw_noise
from diffgan.teachers.denoiser import DenoiserAdapter
from diffgan.teachers.registry import load_teacher
from diffgan.training import ema
from tests.pipelines import FAMILIES, saved

PROMPTS = ["digit 7", "a bold capital A in red on cream", ""]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def teacher(request, tmp_path_factory):
    return load_teacher(str(saved(FAMILIES[request.param], tmp_path_factory.mktemp("float32") / request.param)))


def generator(teacher, float32_output, timestep=None):
    network = copy.deepcopy(teacher.unet).requires_grad_(True)
    return OneStepGenerator(network, teacher.scheduler, timestep, float32_output)


def inputs(teacher, count=3):
    return draw_noise(range(count), teacher.latent_shape), teacher.encode(PROMPTS[:count])


def in_bfloat16(module, *arguments):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return module(*arguments)


def dtypes_inside(module, *arguments):
    """Output dtypes of convolutions in the first block, the last block and the head."""
    unet, seen = module.unet, {}
    places = {"first": unet.down_blocks[0].resnets[0].conv1, "last": unet.up_blocks[-1].resnets[0].conv1}
    places["head"] = unet.conv_out
    hooks = [
        place.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
        for name, place in places.items()
    ]
    in_bfloat16(module, *arguments)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_last_block_and_the_head_compute_in_float32(teacher):
    half, full = torch.bfloat16, torch.float32
    assert dtypes_inside(generator(teacher, False), *inputs(teacher)) == {"first": half, "last": half, "head": half}
    expected = {"first": half, "last": full, "head": full}
    network = generator(teacher, True)
    assert dtypes_inside(network, *inputs(teacher)) == expected
    assert dtypes_inside(ema.frozen_copy(network), *inputs(teacher)) == expected


def test_the_deviation_from_float32_shrinks_and_float32_itself_is_unchanged(teacher):
    plain, better = (generator(teacher, float32_output) for float32_output in (False, True))
    with torch.no_grad():
        assert torch.equal(plain(*inputs(teacher)), better(*inputs(teacher)))
    assert 0 < bf16_rms(better, *inputs(teacher)) < 0.8 * bf16_rms(plain, *inputs(teacher))
    assert plain.state_dict().keys() == better.state_dict().keys()


def test_an_average_computes_with_its_own_weights(teacher):
    network = generator(teacher, True)
    average = ema.frozen_copy(network)
    with torch.no_grad():
        before = in_bfloat16(average, *inputs(teacher))
        for parameter in network.unet.conv_out.parameters():
            parameter.add_(1)
        assert torch.equal(in_bfloat16(average, *inputs(teacher)), before)
        assert not torch.equal(in_bfloat16(network, *inputs(teacher)), before)


def test_checkpointed_gradients_are_those_without(teacher):
    gradients = []
    for checkpointing in (False, True):
        network = generator(teacher, True).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        in_bfloat16(network, *inputs(teacher)).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_can_be_compiled(teacher):
    eager, compiled = generator(teacher, True), generator(teacher, True)
    compiled.compile()
    with torch.no_grad():
        expected = in_bfloat16(eager, *inputs(teacher))
        torch.testing.assert_close(in_bfloat16(compiled, *inputs(teacher)), expected, atol=0.3, rtol=0.05)


def test_the_rms_is_that_of_the_difference_and_draws_nothing(teacher):
    network, (noise, conditioning) = generator(teacher, False), inputs(teacher)
    state = torch.get_rng_state()
    rms = bf16_rms(network, noise, conditioning)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        difference = in_bfloat16(network, noise, conditioning) - network(noise, conditioning)
    assert rms.item() == pytest.approx(difference.norm().item() / difference.numel() ** 0.5, rel=1e-5)


def test_an_epsilon_student_at_an_earlier_timestep_rounds_less(tmp_path):
    """By the ratio of sigma / alpha: 14.6 at 999, 1.2 at 399."""
    sd1 = load_teacher(str(saved(FAMILIES["sd1"], tmp_path / "sd1")))
    late, early = (bf16_rms(generator(sd1, False, t), *inputs(sd1)) for t in (999, 399))
    assert 8 < late / early < 20


def test_inputs_of_any_shape_are_converted_and_integers_kept():
    seen = []

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, hidden, pair=(), extra=None):
            seen.extend([hidden, *pair, extra["c"], extra["n"]])
            return hidden

    block, half = Block(), torch.ones(2, dtype=torch.bfloat16)
    compute_in_float32(block)
    block(half, pair=(half, 3), extra={"c": half, "n": torch.ones(1, dtype=torch.int64)})
    assert [getattr(value, "dtype", value) for value in seen] == [torch.float32] * 2 + [3, torch.float32, torch.int64]


def test_a_network_whose_head_is_not_known_is_refused(teacher):
    with pytest.raises(UserError, match="float32_output: is not supported for a UNet2DConditionModel"):
        DenoiserAdapter.output_modules(teacher.unet, teacher.unet)


@pytest.mark.parametrize("family", ["pixart", "sd3-without-t5", "flux-schnell"])
def test_transformers_have_their_last_block_in_float32(family, tmp_path):
    """Of PixArt's last normalisation, which has no weights, too."""
    teacher = load_teacher(str(saved(FAMILIES[family], tmp_path / family)), size=(32, 32))
    arguments, differences = inputs(teacher, 2), {}
    for float32_output in (False, True):
        network = copy.deepcopy(teacher.denoiser)
        one_step = OneStepGenerator(network, teacher.scheduler, float32_output=float32_output)
        with torch.no_grad():
            exact, rounded = one_step(*arguments), in_bfloat16(one_step, *arguments)
        differences[float32_output] = (rounded - exact).square().mean().item()
    assert 0 < differences[True] < differences[False]
