"""The feature extractors by name, and those that one evaluation uses."""

from importlib import import_module
from typing import Any

import torch

from diffgan.errors import UserError
from diffgan.evaluation.features.base import CMMD_FEATURES, DREAMSIM_FEATURES, FID_FEATURES, FeatureExtractor

EXTRACTORS = {  # name -> module and class; imported when first used, because some libraries are slow to import
    FID_FEATURES: ("inception", "InceptionFeatures"),
    "efficientnet": ("efficientnet", "EfficientNetFeatures"),
    "dinov2": ("dinov2", "DINOv2Features"),
    CMMD_FEATURES: ("clip_image", "CLIPImageFeatures"),
    DREAMSIM_FEATURES: ("dreamsim", "DreamSimFeatures"),
}


def load_extractor(name: str) -> FeatureExtractor:
    """The extractor of a name, with the weights in their usual place.

    Raises:
        UserError: there is no such extractor, its package is not installed, or its weights are missing.
    """
    return _extractor_class(name)()


def missing_weights(name: str) -> list[str]:
    """Files and packages that `load_extractor` needs and that are not on this machine, a line each.

    Nothing is loaded or downloaded.

    Raises:
        UserError: there is no such extractor.
    """
    return _extractor_class(name).missing_weights()


def _extractor_class(name: str) -> Any:
    if name not in EXTRACTORS:
        raise UserError(f"extractor {name!r} is none of {', '.join(EXTRACTORS)}")
    module, class_name = EXTRACTORS[name]
    return getattr(import_module(f"diffgan.evaluation.features.{module}"), class_name)


class Extractors:
    """The feature extractors of an evaluation, each loaded once.

    Args:
        own: the evaluator's own extractor, which metrics use that name none. Of a name, the extractor is loaded when a
            metric needs it.
    """

    def __init__(self, own: FeatureExtractor | str):
        self.own_name = own if isinstance(own, str) else own.name
        self._loaded: dict[str, FeatureExtractor] = {} if isinstance(own, str) else {own.name: own}

    def __getitem__(self, name: str | None) -> FeatureExtractor:
        """The extractor of a name, or the evaluator's own; errors as `load_extractor`."""
        name = self.own_name if name is None else name
        if name not in self._loaded:
            extractor = load_extractor(name)
            self._loaded |= {name: extractor, extractor.name: extractor}  # other weights have another name
        return self._loaded[name]

    def to(self, device: torch.device | str) -> None:
        """Move all networks to a device."""
        for extractor in self._loaded.values():
            extractor.to(device)
