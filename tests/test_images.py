import pytest
import torch

from diffgan.errors import UserError
from diffgan.images import finite_uint8, to_uint8
from diffgan.latent_space import LatentSpace


def test_space_is_inverted_exactly():
    space, x = LatentSpace(4, 8, scale=0.18215, shift=0.1), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(space.to_autoencoder(space.to_model(x)), x)
    torch.testing.assert_close(space.to_model(torch.full((1,), 0.1)), torch.zeros(1))


def test_bytes_are_rounded_and_clipped():
    values = torch.tensor([-2.0, -1.0, -0.9962, 0.0, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_named(value):
    images = torch.rand(3, 3, 2, 2)
    assert torch.equal(finite_uint8(images, "abc", range(3)), to_uint8(images))
    images[1, 2, 0, 1] = value
    with pytest.raises(UserError, match=r"image of 'b' .seed 8. is not finite"):
        finite_uint8(images, "abc", range(7, 10))
