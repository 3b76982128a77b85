"""EfficientNet-Lite0 of the registry package: the network is whole, its features repeat."""

import pytest
import torch

from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.glyphs import recipe
from diffgan.images import to_uint8


@pytest.fixture(scope="module")
def extractor() -> EfficientNetFeatures:
    return EfficientNetFeatures()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return to_uint8(recipe.paint("reference", recipe.describe("reference", 1, range(8))))


def test_features(extractor, images):
    features = extractor(images)
    assert features.shape == (8, 1280) and features.dtype == torch.float32
    assert torch.equal(features, extractor(images))
    assert torch.allclose(features[3:4], extractor(images[3:4]), atol=1e-4)
    assert not extractor.train().training


def test_the_network_is_the_trained_one(extractor):
    """In an orange ball on white the network sees ImageNet's class 722, ping-pong ball (chance: 0.001)."""
    side = torch.linspace(-1, 1, 224)
    radius = (side[:, None].square() + side[None].square()).sqrt()
    shade = (1 - 0.5 * radius.clamp(0, 1)) * (radius < 0.7)
    orange = torch.stack([250 * shade, 140 * shade, 10 * shade]) + 245 * (radius >= 0.7)
    share = extractor.network(((orange - 127) / 128)[None])[0].softmax(0)
    assert share.argmax() == 722 and share[722] > 0.4


def test_only_uint8_is_accepted(extractor):
    with pytest.raises(ValueError, match="uint8"):
        extractor(torch.zeros(1, 3, 64, 64))
