"""Protocols of a few photographs."""

import numpy as np
from PIL import Image

from tests.runs import write


def protocol_files(folder, images):
    """Write protocols of the same three captions and four real images.

    images: number of images by the protocol's name. Returns the files by name.
    """
    (folder / "real").mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "real" / f"{i}.png")
    (folder / "captions.txt").write_text("one dog\ntwo dogs\nthree dogs\n")
    shared = {"captions": str(folder / "captions.txt"), "reference": str(folder / "real"), "side": 24}
    return {
        name: write(folder / f"{name}.yaml", {"name": name, "images": count, "seed_base": 3_000_000_000, **shared})
        for name, count in images.items()
    }
