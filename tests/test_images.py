"""Images as bytes, grids of images, and latent spaces."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from diffgan.errors import UserError
from diffgan.images import finite_uint8, from_uint8, image_grid, png_bytes, to_uint8
from diffgan.latent_space import LatentSpace

COLOURS = ([200, 0, 0], [0, 0, 200])


def test_scaling_to_the_model_is_inverted():
    space, x = LatentSpace(4, 8, scale=0.18215, shift=0.1), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(space.to_autoencoder(space.to_model(x)), x)
    torch.testing.assert_close(space.to_model(torch.full((1,), 0.1)), torch.zeros(1))


def test_each_channel_may_have_its_own_statistics():
    """As in diffusers' StableDiffusionXLPipeline: decoded is latents * latents_std / scaling_factor + latents_mean."""
    config = {"latent_channels": 2, "block_out_channels": [8, 8, 8], "scaling_factor": 0.5}
    space = LatentSpace.of_config(config | {"latents_mean": [1.0, -2.0], "latents_std": [4.0, 8.0]})
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    expected = torch.stack([(x[:, 0] - 1) / 4 * 0.5, (x[:, 1] + 2) / 8 * 0.5], 1)
    torch.testing.assert_close(space.to_model(x), expected)
    torch.testing.assert_close(space.to_autoencoder(expected), x)
    torch.testing.assert_close(space.to_model(x[0]), expected[0])
    assert LatentSpace(**json.loads(json.dumps(space.as_dict()))).checked("a file") == space
    assert LatentSpace(4, 8, 1.0).as_dict() == {"channels": 4, "factor": 8, "scale": 1.0, "shift": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std must both be given"),
        ({"latents_std": [1.0] * 4}, "latents_mean and latents_std must both be given"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "given, without shift_factor"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, r"latents_mean is \[0.0, 0.0, 0.0\] and must be 4 fin"),
        ({"latents_mean": [float("nan")] * 4, "latents_std": [1.0] * 4}, "latents_mean is .nan, .* must be 4 fin"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std is .* 4 .* above 0"),
        ({"latents_mean": [0.0] * 4, "latents_std": "1111"}, "latents_std is '1111' and must be"),
        ({"latents_mean": 0.0, "latents_std": [1.0] * 4}, "latents_mean is 0.0 and must be"),
    ],
)
def test_statistics_of_channels_are_checked(change, message):
    config = {"latent_channels": 4, "block_out_channels": [8, 8], "scaling_factor": 1.0}
    with pytest.raises(UserError, match=message):
        LatentSpace.of_config(config | change)


def test_to_uint8_rounds_clips_and_inverts_from_uint8():
    values = torch.tensor([-2.0, -1.0, -0.9962, 0.0, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    values = from_uint8(levels)
    assert values.dtype == torch.float32 and values[[0, 51, 255]].tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert torch.equal(to_uint8(values), levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_refused(value):
    images = torch.rand(3, 3, 2, 2)
    assert torch.equal(finite_uint8(images, "abc", range(3)), to_uint8(images))
    images[1, 2, 0, 1] = value
    with pytest.raises(UserError, match=r"image of 'b' .seed 8. is not finite"):
        finite_uint8(images, "abc", range(7, 10))


def test_a_grid_has_its_images_at_their_places():
    red, blue = (torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 8, 8) for colour in COLOURS)
    rows = {"two": torch.stack([red, blue]), "one": blue[None]}
    image = image_grid(rows, ["first", "second"])
    grid = np.asarray(image)
    assert np.array_equal(np.asarray(Image.open(BytesIO(png_bytes(image)))), grid)
    side, left, top = 112 + 6, 118 + 56, 6 + 56  # distance of images; centre of the first one
    assert grid[top, left].tolist() == COLOURS[0]
    assert grid[top, left + side].tolist() == grid[top + side, left].tolist() == COLOURS[1]
    assert grid[top + side, left + side].tolist() == [255, 255, 255]
    assert (grid[2 * side :] < 128).any(), "captions below"
    assert image_grid(rows).height == len(grid) - 48, "no captions"
