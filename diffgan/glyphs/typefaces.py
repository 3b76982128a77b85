"""The data of the package: 88,102 glyphs of 1,421 typefaces, split by family."""

import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
CATEGORIES = ("serif", "sans serif", "monospace", "handwriting", "display")
SPLITS = ("train", "validation", "reference")
ATTRIBUTES = ("family", "style", "category", "weight", "slant", "source")
SIDE = 64
ARCHIVE = "data/glyphs_4bit.npz"


@dataclass(frozen=True)
class Typefaces:
    """Coverage maps and attributes of T typefaces.

    packed: (T, 62, 64, 32) uint8, two 4-bit coverages per byte, the left pixel in the high half.
    family, style, category, weight, slant, source: (T,) str; an unknown category is "".
    """

    packed: np.ndarray
    family: np.ndarray
    style: np.ndarray
    category: np.ndarray
    weight: np.ndarray
    slant: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.family)

    def coverage(self, typeface: np.ndarray, character: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Coverage maps of N glyphs; their packed bytes are unpacked on the device.

        Args:
            typeface: (N,) indices of the typefaces.
            character: (N,) indices into CHARACTERS.
            device: of the result.

        Returns:
            (N, 64, 64) float32 in [0, 1].
        """
        packed = torch.from_numpy(self.packed[typeface, character]).to(device)  # (N, 64, 32)
        pixels = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(2)
        return pixels.float() / 15

    @cached_property
    def reach(self) -> np.ndarray:
        """(T, 62) float: distance in pixels from the centre of the map to the ink farthest from it along an axis."""
        ink = self.packed > 0x11
        rows, columns = ink.any(3), ink.any(2).repeat(2, axis=2)  # (T, 62, 64) each
        distance = np.abs(np.arange(SIDE) - (SIDE - 1) / 2) + 0.5
        return np.maximum((rows * distance).max(-1), (columns * distance).max(-1))

    def subset(self, keep: np.ndarray) -> "Typefaces":
        """The typefaces that a boolean array (T,) selects."""
        return Typefaces(self.packed[keep], *(getattr(self, name)[keep] for name in ATTRIBUTES))


def split_of(family: str) -> str:
    """Split of a family; families whose names start with the same word (Noto Sans, Noto Serif) have the same one."""
    digest = hashlib.blake2b(family.split()[0].encode(), digest_size=4).hexdigest()
    return {0: "validation", 1: "reference"}.get(int(digest, 16) % 10, "train")


@lru_cache(maxsize=1)
def all_typefaces() -> Typefaces:
    """All typefaces of the package, loaded once per process (180 MB)."""
    with np.load(BytesIO(files("diffgan.glyphs").joinpath(ARCHIVE).read_bytes()), allow_pickle=False) as arrays:
        return Typefaces(**{name: arrays[name] for name in ("packed", *ATTRIBUTES)})


@lru_cache(maxsize=3)
def typefaces(split: str) -> Typefaces:
    """The typefaces of one split: "train", "validation" or "reference" (8 : 1 : 1), with no family in common.

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    faces = all_typefaces()
    return faces.subset(np.array([split_of(family) == split for family in faces.family]))


def load_for_workers(split: str) -> None:
    """Load the typefaces of a split here, so that processes forked later share them."""
    _ = typefaces(split).reach


def pack(source: Path, target: Path) -> None:
    """Write the 4-bit archive of the package.

    Args:
        source: the 8-bit archive `glyphs_64.npz` of the data's release.
        target: .npz to write.
    """
    with np.load(source, allow_pickle=False) as arrays:
        levels = ((arrays["glyphs"].astype(np.uint16) * 15 + 127) // 255).astype(np.uint8)
        fields = {name: arrays[name] for name in ATTRIBUTES}
    fields["packed"] = levels[..., 0::2] << 4 | levels[..., 1::2]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in fields.items():
            buffer = BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA)
