"""Runs' folders with made-up pairs, and what a page consists of."""

import json
from html.parser import HTMLParser
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from diffgan.reports.comparison import ComparedPair, Comparison, Origin
from diffgan.reports.images import data_uri

HOSTILE = """<script>alert("1")</script> & 'quoted' "caption" {{ 7 * 7 }} <img src=x onerror=alert(2)> </figcaption>"""


STUDENT = {
    "stage": "test",
    "name": "student, 1 step",
    "metrics": {
        "evaluation/fd_efficientnet_grain": 159.6429,
        "evaluation/fd_efficientnet_grain_floor": 67.0464,
        "evaluation/kid_efficientnet_grain": 0.14515,
        "evaluation/reading": 0.95824,
        "evaluation/reading_real": 0.88863,
        "evaluation/images": 620.0,
        "validation/mse": 0.16734,
    },
    "images_seen": 32000,
    "checkpoint": {"name": "last.ckpt", "digest": "881d17ff8c836ad25e500c090954cabf"},
    "seconds": 64.4,
    "protocol": "glyphs-500",
    "protocol_digest": "ffdea9a591851808",
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "device": {"name": "x86_64", "threads": 1},
    "seed": 0,
    "config": {"model": {"class_path": "diffgan.methods.diffusion2gan.Diffusion2GAN"}},
}
TEACHER = {
    "stage": "evaluate",
    "name": "teacher, 20 steps",
    "metrics": {"evaluation/fd_efficientnet_grain": 146.026, "evaluation/reading": 0.94432},
    "network_calls": 20,
    "protocol": "glyphs-500",
    "protocol_digest": "ffdea9a591851808",
}


def compared_pair(number: int, prompt: str, distance: float, side: int, limit: int = 40_000) -> ComparedPair:
    """A pair of two images of one colour each, with noise."""
    random = torch.Generator().manual_seed(number)
    images = (torch.randint(low, low + 60, (3, side, side), generator=random).byte() for low in (20, 160))
    return ComparedPair(number, 1000 + number, prompt, distance, *(data_uri(image, limit) for image in images))


def comparison(side: int = 64, **changes) -> Comparison:
    """Teacher and student on three held-out pairs, the last two the farthest."""
    prompts = ("digit 7", HOSTILE, "")
    pairs = [compared_pair(7 + i, prompt, 0.5 + i, side) for i, prompt in enumerate(prompts)]
    values = {
        "origin": Origin("diffgan test -c 'my <file>.yaml'", "0.5.0", "0123456789ab", "2026-11-27 12:00 UTC"),
        "teacher": "glyphs",
        "teacher_digest": "427cf866e5181d2c",
        "steps": 20,
        "guidance": 3.0,
        "pair_set": "pairs/demo",
        "pair_count": 2000,
        "images_seen": 32000,
        "image_size": [side, side],
        "distance_name": "ELatentLPIPS",
        "distances": [0.5, 1.5, 2.5],
        "first": pairs,
        "largest": pairs[:0:-1],
    }
    return Comparison(**values | changes)


def run_after_test(folder: Path, **changes) -> Path:
    """The folder of a run after a test: record, pairs and curves."""
    comparison(**changes).write(folder)
    (folder / "metrics.json").write_text(json.dumps(STUDENT))
    with SummaryWriter(str(folder)) as writer:
        for step in range(0, 32000, 1000):
            writer.add_scalar("g/regression", 2.0 - step / 32000, step)
            writer.add_scalar("d/accuracy_real", 0.5 + step / 80000, step)
    return folder


def change(file: Path, **values) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class Page(HTMLParser):
    """What a page consists of.

    Attributes:
        addresses: values of attributes that a browser loads.  images: attributes of each <img>.  tags: names of all
        elements.  text: of the whole page without scripts and styles.  cells: texts of the rows of the first table.
    """

    LOADED = ("src", "srcset", "href", "data", "poster", "action", "background")

    def __init__(self, content: str):
        super().__init__(convert_charrefs=True)
        self.addresses: list[str] = []
        self.images: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text, self.cells = "", []
        self._open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.addresses += [value for name, value in attrs if name in self.LOADED]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        self.text += " "
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text += data
            if {"td", "th"} & set(self._open):
                self.cells[-1][-1] += data

    def row(self, heading: str) -> list[str]:
        """The cells of the first row with this heading."""
        return next(cells[1:] for cells in self.cells if cells[0] == heading)
