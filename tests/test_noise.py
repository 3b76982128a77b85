"""Noise drawn from seeds."""

import pytest
import torch

from diffgan.noise import draw_noise

SHAPE = (4, 8, 8)


def test_a_row_depends_only_on_its_own_seed():
    together = draw_noise([7, 3, 2**32 - 1], SHAPE)
    assert together.dtype == torch.float32
    for row, seed in zip(together, [7, 3, 2**32 - 1], strict=True):
        assert torch.equal(row, draw_noise([seed], SHAPE)[0])


def test_the_global_generator_is_neither_used_nor_changed():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_noise(range(2), SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first, draw_noise(torch.tensor([0, 1]), SHAPE))


def test_neighbouring_seeds_give_independent_standard_normal_rows():
    noise = draw_noise(range(512), SHAPE).flatten(1)  # (512, 256)
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02
    correlation = (noise[:-1] * noise[1:]).mean(1)  # of neighbours: about N(0, 1 / 256)
    assert correlation.std().item() == pytest.approx(1 / 16, rel=0.2)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_torch_would_truncate_are_refused(seed):
    with pytest.raises(ValueError, match=str(seed)):
        draw_noise([seed], SHAPE)


@pytest.mark.parametrize("inference", [False, True])
def test_threads_do_not_change_the_noise(inference):
    """Also in inference mode, which Lightning uses to predict, validate and test; threads are never in that mode."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with torch.inference_mode(inference):
            together = draw_noise(range(40), (4, 64, 64))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, torch.cat([draw_noise([seed], (4, 64, 64)) for seed in range(40)]))
