"""Data of the denoiser and VGG stages of the miniature: processor time per training image, plain and resident.

Plain: the captions are worded again and tokenised in every batch. Resident: everything is on the device, a batch is an
index; what is done once (describing, and the tokens of distinct captions) is stated beside it. On a machine without a
GPU the resident path's time contains the copying that a GPU would do, and painting and encoding are left out.
"""

import time
from collections.abc import Callable, Iterable

import torch
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

from datamodules.glyphs import GlyphDataset, LatentCaptions, LatentDataset
from datamodules.resident_latents import IndexedLatents, ResidentBatches, epoch_order
from diffgan.glyphs import recipe
from diffgan.storage.embedded import embedded

IMAGES, BATCH, LARGE_BATCH, ROUNDS = 4096, 16, 1024, 5


def microseconds(work: Callable[[], None], images: int = IMAGES) -> float:
    """Processor time per image, the least of some rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) / images)
    return 1e6 * min(times)


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")


def plain_epoch(batches: Iterable, tokenizer: CLIPTokenizer) -> None:
    for batch in batches:
        tokenise(tokenizer, batch.caption)


def resident_epoch(batches: ResidentBatches, texts: torch.Tensor) -> None:
    for batch in batches:
        texts[batch.caption]


def plain_loader(latents: torch.Tensor) -> DataLoader:
    """The plain loader of `GlyphLatents`; the values of the latents do not matter here."""
    dataset = LatentDataset(latents, GlyphDataset("train", IMAGES, 0))
    return DataLoader(dataset, BATCH, shuffle=True, drop_last=True, collate_fn=whole_batch)


def whole_batch(batch: LatentCaptions) -> LatentCaptions:
    """Collate function of a data set that returns whole batches."""
    return batch


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = CLIPTokenizer.from_pretrained(embedded("teacher/tokenizer"))
    latents = torch.randn(IMAGES, 3, 16, 16).half()
    loader = plain_loader(latents)
    plain = microseconds(lambda: plain_epoch(loader, tokenizer))
    glyphs = recipe.describe("train", 0, range(IMAGES))
    captions = [glyph.caption for glyph in glyphs]
    split = IndexedLatents(latents, torch.arange(IMAGES), recipe.labels("train", glyphs))
    batches = ResidentBatches(split, LARGE_BATCH, lambda: epoch_order(IMAGES, 0, 0))
    texts = torch.zeros(IMAGES, 24, 128, dtype=torch.float16)
    resident = microseconds(lambda: resident_epoch(batches, texts))
    once = microseconds(lambda: recipe.describe("train", 0, range(IMAGES)))
    once += microseconds(lambda: tokenise(tokenizer, captions))
    print("processor time per training image, one thread   (aim: at most 30 microseconds)")
    print(f"plain, batches of {BATCH:4d}      {plain:6.1f} microseconds")
    print(f"resident, batches of {LARGE_BATCH:4d} {resident:6.1f} microseconds, and {once:.1f} once for each image")
    painted = microseconds(lambda: recipe.paint("train", glyphs[:256]), 256)
    print(f"painting an image on the processor {painted:.0f} microseconds (resident: on the device)")


if __name__ == "__main__":
    main()
