"""The adversarial losses against values by hand."""

import math

import pytest
import torch

from diffgan.losses import gan as losses
from diffgan.losses import gradient_penalty, mix_and_match
from diffgan.nets.discriminator import ReadOut


def read_outs(*maps):
    return [ReadOut(i, "after", torch.tensor(m)) for i, m in enumerate(maps)]


def softplus(x):
    return math.log1p(math.exp(x))


def test_logistic_loss_counts_every_read_out_alike():
    """A map of one logit weighs as much as one of four."""
    outs = read_outs([[[[2.0]]]], [[[[0.0, 1.0], [-1.0, 3.0]]]])
    for towards in (1, -1):
        fine = sum(softplus(-towards * v) for v in (0.0, 1.0, -1.0, 3.0)) / 4
        expected = (softplus(-towards * 2.0) + fine) / 2
        assert losses.non_saturating(outs, towards).tolist() == pytest.approx([expected])
    assert losses.score(outs).tolist() == pytest.approx([(2.0 + 0.75) / 2])


def test_rows_are_samples():
    outs = [ReadOut(0, "skip", torch.arange(12.0).reshape(3, 1, 2, 2))]
    assert losses.rows(outs, slice(1, None))[0].logits.flatten().tolist() == list(range(4, 12))


@pytest.mark.parametrize("with_noise", [False, True])
def test_penalty_of_a_quadratic_is_known(with_noise):
    """D = sum a x^2 + b z^2: |grad_x|^2 = 4 a^2 |x|^2, and the same in z."""
    x, z = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    a = torch.tensor(1.5, requires_grad=True)
    opinion = lambda x, z: (a * x.square() + 0.5 * z.square()).flatten(1).sum(1)  # noqa: E731
    penalty = gradient_penalty.r1_penalty(opinion, x, z, with_noise)
    expected = 9 * x.square().flatten(1).sum(1) + with_noise * z.square().flatten(1).sum(1)
    torch.testing.assert_close(penalty, expected)
    penalty.sum().backward()
    torch.testing.assert_close(a.grad, 8 * 1.5 * x.square().sum())


def test_every_sample_has_its_turn_and_shares_choose_as_the_whole():
    assert [list(gradient_penalty.rotating_rows(4, 1, turn)) for turn in range(5)] == [[0], [1], [2], [3], [0]]
    for turn in range(9):
        whole = list(gradient_penalty.rotating_rows(8, 2, turn))
        shares = [row + 4 * rank for rank in (0, 1) for row in gradient_penalty.rotating_rows(4, 1, turn)]
        assert whole == shares


def test_mix_and_match_shows_real_latents_under_anothers_noise():
    latent, generated = torch.arange(8.0).reshape(8, 1, 1, 1), -torch.ones(8, 1, 1, 1)
    replaced = mix_and_match.mismatched(8, 0.25)
    assert replaced.sum() == 2
    fakes = mix_and_match.mix_and_match(generated, mix_and_match.neighbours(latent), replaced).flatten()
    for i, value in enumerate(fakes.tolist()):
        assert value == ((i ^ 1) if replaced[i] else -1)


@pytest.mark.parametrize(("batch", "share"), [(8, 0.25), (16, 0.25), (6, 0.5), (4, 0.0), (10, 0.3)])
def test_share_of_mismatches(batch, share):
    assert mix_and_match.mismatched(batch, share).sum() == round(batch * share)


def test_balance_is_the_ratio_of_norms():
    assert losses.balance(torch.tensor(16.0), torch.tensor(4.0)).item() == pytest.approx(2.0, rel=1e-6)
    assert losses.balance(torch.tensor(1.0), torch.tensor(0.0)).item() == 1e4
