"""The adversarial losses against values computed by hand."""

import math

import pytest
import torch

from diffgan.losses import gan, gradient_penalty, mix_and_match
from diffgan.nets.discriminator import ReadOut


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


def test_split_divides_samples():
    outs = [ReadOut(0, "skip", torch.arange(12.0).reshape(3, 1, 2, 2))]
    first, second = gan.split(outs, 1)
    assert first[0].logits.flatten().tolist() == list(range(4))
    assert second[0].logits.flatten().tolist() == list(range(4, 12))


def test_statistics_of_the_discriminator():
    """Scores and accuracies of each kind of sample; a kind without samples has none."""
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 3.0, -2.0])
    statistics = gan.discriminator_statistics(real, fake, torch.tensor([False, False, True]))
    assert {name: value.item() for name, value in statistics.items()} == {
        "d/score_real": -0.5,
        "d/accuracy_real": 0.5,
        "d/score_fake": 1.0,
        "d/accuracy_fake": 0.5,
        "d/score_mismatched": -2.0,
        "d/accuracy_mismatched": 1.0,
    }
    without = gan.discriminator_statistics(real, fake, torch.zeros(3, dtype=torch.bool))
    assert without.keys() == {"d/score_real", "d/accuracy_real", "d/score_fake", "d/accuracy_fake"}


@pytest.mark.parametrize("with_noise", [False, True])
def test_penalty_of_a_quadratic_is_known(with_noise):
    """D = sum a x^2 + b z^2: |grad_x|^2 = 4 a^2 |x|^2, and the same in z."""
    x, z = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    a = torch.tensor(1.5, requires_grad=True)
    function = lambda x, z: (a * x.square() + 0.5 * z.square()).flatten(1).sum(1)  # noqa: E731
    penalty = gradient_penalty.r1_penalty(function, x, z, with_noise)
    expected = 9 * x.square().flatten(1).sum(1) + with_noise * z.square().flatten(1).sum(1)
    torch.testing.assert_close(penalty, expected)
    penalty.sum().backward()
    torch.testing.assert_close(a.grad, 8 * 1.5 * x.square().sum())


def test_every_row_is_penalised_in_turn_and_shares_choose_as_the_whole_batch():
    assert [list(gradient_penalty.rotating_rows(4, 1, penalty)) for penalty in range(5)] == [[0], [1], [2], [3], [0]]
    for penalty in range(9):
        whole = list(gradient_penalty.rotating_rows(8, 2, penalty))
        shares = [row + 4 * rank for rank in (0, 1) for row in gradient_penalty.rotating_rows(4, 1, penalty)]
        assert whole == shares


def test_mix_and_match_replaces_fakes_by_the_latents_of_their_neighbours():
    latent, generated = torch.arange(8.0).reshape(8, 1, 1, 1), -torch.ones(8, 1, 1, 1)
    replaced = mix_and_match.mismatched(8, 0.25)
    assert replaced.sum() == 2
    fakes = mix_and_match.mix_and_match(generated, mix_and_match.neighbours(latent), replaced).flatten()
    for i, value in enumerate(fakes.tolist()):
        assert value == ((i ^ 1) if replaced[i] else -1)


@pytest.mark.parametrize(("batch", "share"), [(8, 0.25), (16, 0.25), (6, 0.5), (4, 0.0), (10, 0.3)])
def test_number_of_mismatched_rows(batch, share):
    assert mix_and_match.mismatched(batch, share).sum() == round(batch * share)


def test_balance_is_the_ratio_of_norms():
    assert gan.balance(torch.tensor(16.0), torch.tensor(4.0)).item() == pytest.approx(2.0, rel=1e-6)
    assert gan.balance(torch.tensor(1.0), torch.tensor(0.0)).item() == 1e4
