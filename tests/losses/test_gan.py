"""The adversarial losses against values computed by hand."""

import math

import pytest
import torch

from diffgan.conditioning import Conditioning
from diffgan.losses import gan, gradient_penalty, mix_and_match
from diffgan.methods.gradient_balance import GradientBalance
from diffgan.methods.micro_batches import MicroBatch, Samples, mismatch
from diffgan.nets.discriminator import MultiScaleDiscriminator, ReadOut
from diffgan.teachers.registry import load_teacher


def read_outs(*maps):
    return [ReadOut(i, "after", torch.tensor(m)) for i, m in enumerate(maps)]


def softplus(x):
    return math.log1p(math.exp(x))


def test_every_read_out_has_the_same_weight():
    """A map of one logit counts as much as one of four."""
    outs = read_outs([[[[2.0]]]], [[[[0.0, 1.0], [-1.0, 3.0]]]])
    for sign in (1, -1):
        fine = sum(softplus(sign * v) for v in (0.0, 1.0, -1.0, 3.0)) / 4
        expected = (softplus(sign * 2.0) + fine) / 2
        assert gan.mean_softplus(outs, sign).tolist() == pytest.approx([expected])
    assert gan.score(outs).tolist() == pytest.approx([(2.0 + 0.75) / 2])


def test_losses_of_a_batch():
    """L_D takes real samples for real and fake ones for fake, L_GAN fake ones for real; means over the batch."""
    real, fake = read_outs([[[[2.0]]], [[[1.0]]]]), read_outs([[[[-3.0]]], [[[0.5]]]])
    expected = (softplus(-2.0) + softplus(-1.0) + softplus(-3.0) + softplus(0.5)) / 2
    assert gan.discriminator_loss(real, fake).item() == pytest.approx(expected)
    assert gan.generator_loss(fake).item() == pytest.approx((softplus(3.0) + softplus(-0.5)) / 2)


def test_statistics_of_the_discriminator():
    """Scores and accuracies of each kind of sample; a kind without samples has none."""
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 3.0, -2.0, 5.0, 4.0, -4.0])
    kinds = torch.tensor([0, 0, 1, 2, 3, 3])
    statistics = gan.discriminator_statistics(real, fake, kinds)
    assert {name: value.item() for name, value in statistics.items()} == {
        "d/score_real": -0.5,
        "d/accuracy_real": 0.5,
        "d/score_fake": 1.0,
        "d/accuracy_fake": 0.5,
        "d/score_mismatched_text": -2.0,
        "d/accuracy_mismatched_text": 1.0,
        "d/score_mismatched_noise": 5.0,
        "d/accuracy_mismatched_noise": 0.0,
        "d/score_mismatched_latent": 0.0,
        "d/accuracy_mismatched_latent": 0.5,
    }
    without = gan.discriminator_statistics(real, fake, torch.zeros(6, dtype=torch.int64))
    assert without.keys() == {"d/score_real", "d/accuracy_real", "d/score_fake", "d/accuracy_fake"}


METHODS = gradient_penalty.METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_noise", [False, True])
def test_penalty_of_a_quadratic_is_known(method, with_noise):
    """D = sum a x^2 + b z^2: |grad_x|^2 = 4 a^2 |x|^2, and the same in z. Central differences of it are exact."""
    double = torch.Generator().manual_seed(0)
    x, z = (torch.randn(3, 2, 4, 4, generator=double, dtype=torch.float64) for _ in range(2))
    a = torch.tensor(1.5, requires_grad=True)
    function = lambda x, z: (a * x.square() + 0.5 * z.square()).flatten(1).sum(1)  # noqa: E731
    surrogate, penalty = METHODS[method].squared_norm(function, x, z, with_noise)
    expected = 9 * x.square().flatten(1).sum(1) + with_noise * z.square().flatten(1).sum(1)
    torch.testing.assert_close(penalty, expected)
    assert not penalty.requires_grad
    surrogate.sum().backward()
    torch.testing.assert_close(a.grad, (8 * 1.5 * x.square().sum()).float())


def test_penalty_of_a_constant_is_zero():
    """A discriminator without a gradient, as one whose read-outs are zero, gives no NaN."""
    a = torch.tensor(1.5, requires_grad=True)
    x = torch.randn(2, 1, 2, 2)
    for method in METHODS.values():
        surrogate, penalty = method.squared_norm(lambda x, z: (0 * a * x).flatten(1).sum(1), x, x, False)
        (gradient,) = torch.autograd.grad(surrogate.sum(), a)
        assert penalty.tolist() == [0.0, 0.0] and gradient.item() == 0.0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("with_noise", [False, True])
def test_finite_differences_have_the_gradient_of_the_exact_penalty(tiny_pipeline, checkpointing, with_noise):
    """On a discriminator of a Stable Diffusion network: cosine at least 0.999, values and lengths equal."""
    assert_same_gradient(str(tiny_pipeline), checkpointing, with_noise)


def test_finite_differences_on_the_discriminator_of_the_glyphs():
    assert_same_gradient("glyphs", checkpointing=False, with_noise=False)


def assert_same_gradient(path, checkpointing, with_noise):
    teacher = load_teacher(path)
    torch.manual_seed(0)
    discriminator = MultiScaleDiscriminator(teacher.denoiser)
    for module in (discriminator.noise_in, *discriminator.latent_in):  # zero at first
        torch.nn.init.normal_(module.weight, std=0.02)
    if checkpointing:
        discriminator.enable_gradient_checkpointing()
    latent, noise = torch.randn(2, 2, *teacher.latent_shape)
    gradients, penalties = [], []
    for method in METHODS.values():
        with gradient_penalty.full_precision(latent.device, method.second_derivatives):
            inputs = (latent, noise, teacher.encode(["digit 7", "a letter"]))
            penalty = gradient_penalty.r1_loss(method, discriminator, *inputs, gamma=10.0, with_noise=with_noise)
            penalty.loss.backward()
        gradients.append(torch.cat([grad.flatten() for grad in _gradients(discriminator)]))
        penalties.append(penalty)
        discriminator.zero_grad()
    exact, approximate = gradients
    assert torch.cosine_similarity(exact, approximate, dim=0) >= 0.999
    assert (approximate.norm() / exact.norm()).item() == pytest.approx(1, abs=0.02)
    assert penalties[1].squared_norm.item() == pytest.approx(penalties[0].squared_norm.item(), rel=1e-4)
    assert penalties[0].loss.item() == pytest.approx(5 * penalties[0].squared_norm.item(), rel=1e-4)


def _gradients(network):
    """Of all weights; where no path leads to one (a bias before a mean), its gradient is none or zero."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]


def test_full_precision_restores_the_settings_of_the_device():
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    with pytest.raises(ValueError), gradient_penalty.full_precision(torch.device("cpu"), True):
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
        raise ValueError
    assert (matmul.fp32_precision, convolution.fp32_precision) == before


def test_every_row_is_penalised_in_turn_and_shares_choose_as_the_whole_batch():
    assert [list(gradient_penalty.rotating_rows(4, 1, penalty)) for penalty in range(5)] == [[0], [1], [2], [3], [0]]
    for penalty in range(9):
        whole = list(gradient_penalty.rotating_rows(8, 2, penalty))
        shares = [row + 4 * rank for rank in (0, 1) for row in gradient_penalty.rotating_rows(4, 1, penalty)]
        assert whole == shares


def test_kinds_of_fakes_are_a_function_of_the_row_over_the_whole_training():
    """Evenly spaced mismatched rows whose kinds alternate, however the rows are divided into batches."""
    kinds = mix_and_match.fake_kinds(0, 24, 0.25, (1, 2, 3)).tolist()
    assert kinds == [0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0] * 2
    for share in (0.0, 0.1, 0.3, 0.5, 0.9):
        whole = mix_and_match.fake_kinds(0, 6000, share, (1, 2, 3))
        parts = [mix_and_match.fake_kinds(first, 8, share, (1, 2, 3)) for first in range(0, 6000, 8)]
        assert torch.equal(torch.cat(parts), whole)
        assert (whole > 0).sum() == round(6000 * share)
        counts = torch.bincount(whole[whole > 0], minlength=4)[1:]
        assert counts.max() - counts.min() <= 1
    assert set(mix_and_match.fake_kinds(0, 1000, 0.5, (1, 3)).tolist()) == {0, 1, 3}
    late = 20_000_000 * 12  # no rounding after a long training
    assert (mix_and_match.fake_kinds(late, 16, 0.25, (1, 2, 3)) > 0).sum() == 4


def test_mismatched_rows_have_one_input_of_their_neighbours():
    x, z, text = (torch.arange(8.0).reshape(8, 1, 1, 1) + start for start in (0, 10, 20))
    kinds = torch.tensor([0, 1, 2, 3, 0, 0, 3, 0])
    pairs = Samples(x, z, Conditioning(text.flatten(1)))
    fake = MicroBatch(pairs, mismatch(pairs, kinds), kinds, torch.zeros(8, 1, 1, 1)).fake(-torch.ones(8, 1, 1, 1))
    assert fake.latent.flatten().tolist() == [-1, 1, 2, 2, -1, -1, 7, -1]
    assert fake.noise.flatten().tolist() == [10, 11, 13, 13, 14, 15, 16, 17]
    assert fake.conditioning.text.flatten().tolist() == [20, 20, 22, 23, 24, 25, 26, 27]


def test_input_noise_is_the_same_on_real_and_fake_rows():
    zero = torch.zeros(4, 1, 2, 2)
    pairs, noise = Samples(zero, zero, Conditioning(torch.zeros(4, 1, 1))), torch.randn(4, 1, 2, 2)
    batch = MicroBatch(pairs, pairs, torch.tensor([0, 1, 2, 3]), noise)
    assert torch.equal(batch.real().latent, noise) and torch.equal(batch.fake(zero).latent, noise)


def test_balance_is_the_ratio_of_norms():
    assert gan.balance(torch.tensor(16.0), torch.tensor(4.0)).item() == pytest.approx(2.0, rel=1e-6)
    assert gan.balance(torch.tensor(1.0), torch.tensor(0.0)).item() == 1e4


def test_averaged_balance_follows_the_squared_norms_of_about_a_hundred_steps():
    """The first step's ratio is its own; later ones are those of exponential averages."""
    ratio = GradientBalance()
    assert ratio.update(torch.tensor(16.0), torch.tensor(4.0)).item() == pytest.approx(2.0, rel=1e-5)
    weights = [0.99**k for k in range(3)][::-1]
    for regression, adversarial in ((4.0, 4.0), (1.0, 25.0)):
        value = ratio.update(torch.tensor(regression), torch.tensor(adversarial)).item()
    means = [sum(w * v for w, v in zip(weights, values, strict=True)) for values in ((16, 4, 1), (4, 4, 25))]
    assert value == pytest.approx((means[0] / means[1]) ** 0.5, rel=1e-5)
