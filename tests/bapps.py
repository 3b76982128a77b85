"""A folder of two-alternative forced choices in the layout in which BAPPS is published."""

from pathlib import Path

import numpy as np
from PIL import Image

ANSWERS = 0.9  # share of the answers that chose p1


def write_bapps(root: Path) -> Path:
    """Write two families of four choices: p1 equals the reference, p0 does not; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for family in ("cnn", "traditional"):
            folder = root / split / family
            for subfolder in ("ref", "p0", "p1", "judge"):
                (folder / subfolder).mkdir(parents=True)
            for i in range(4):
                reference, other = rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
                for subfolder, pixels in (("ref", reference), ("p0", other), ("p1", reference)):
                    Image.fromarray(pixels).save(folder / subfolder / f"{i:06}.png")
                np.save(folder / "judge" / f"{i:06}.npy", np.array([ANSWERS], dtype=np.float32))
    return root
