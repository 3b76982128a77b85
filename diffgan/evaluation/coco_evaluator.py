"""The judge of generators of photographs: Fréchet distance to real ones, and CLIP score, on a COCO protocol."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from diffgan.errors import UserError
from diffgan.evaluation.features import inception
from diffgan.evaluation.metrics.clip_score import CLIPScore
from diffgan.evaluation.metrics.distances import FeatureStatistics, frechet_distance
from diffgan.evaluation.preprocessing import read_pictures, resized
from diffgan.evaluation.protocols.coco import CocoProtocol
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit
from diffgan.images import finite_uint8
from diffgan.noise import draw_noise
from diffgan.storage.tensor_files import write_tensors

# (noise (N, C, H, W), N prompts) -> images (N, 3, H, W) in [-1, 1], on any device
Generate = Callable[[Tensor, list[str]], Tensor]


class Seen(NamedTuple):
    """features: (n, D).  scores: (n,), or None without CLIP.  seconds: of generation."""

    features: Tensor
    scores: Tensor | None
    seconds: float


class CocoEvaluator:
    """Judge generators by a protocol; every process makes and looks at its own share of the images.

    Args:
        protocol: what is generated and compared with.
        extractor: features of the distance (a `FeatureExtractor`); FID's Inception by default. Of any other the
            distance is called `fd_<name>`.
        cache: folder where the statistics of the reference are kept between runs.
        batch_size: images of one process at once.

    Raises:
        UserError: captions, reference or a network's weights are not there.
    """

    def __init__(
        self,
        protocol: CocoProtocol,
        extractor: nn.Module | None = None,
        cache: Path | None = None,
        batch_size: int = 16,
    ):
        self.protocol, self.cache, self.batch_size = protocol, cache, batch_size
        self.digest = protocol.digest  # reads captions and reference: they are missed now, not after hours
        self.extractor = inception.InceptionFeatures() if extractor is None else extractor
        self.clip = None if protocol.clip_model is None else CLIPScore(protocol.clip_model, protocol.clip_weights)
        self._reference: FeatureStatistics | None = None

    @torch.no_grad()
    def evaluate(
        self,
        generate: Generate,
        latent_shape: Sequence[int],
        device: torch.device | str,
        place: WorkSplit = SINGLE_PROCESS,
    ) -> dict[str, float | str]:
        """Figures of a generator, called with noise (n, *latent_shape) and n prompts at a time (collective).

        Returns:
            fid (or fd_X of extractor X); clip_score, if the protocol has one; images; seconds_per_image of generation
            on one process; protocol and its digest.
        """
        networks = [network for network in (self.extractor, self.clip) if network is not None]
        for network in networks:
            network.to(device)
        seen = self._look_at_generated(generate, tuple(latent_shape), device, place)
        reference = self.reference(device, place)
        for network in networks:
            network.cpu()
        count, name = self.protocol.images, self.extractor.name
        features = place.joined(seen.features, count)
        figures = {"protocol": self.protocol.name, "protocol_digest": self.digest, "images": float(len(features))}
        figures["seconds_per_image"] = seen.seconds / len(seen.features)
        distance = frechet_distance(FeatureStatistics.of(features.cpu()), reference)
        figures["fid" if name == inception.NAME else f"fd_{name}"] = distance
        if seen.scores is not None:
            figures["clip_score"] = place.joined(seen.scores, count).double().mean().item()
        return figures

    def _look_at_generated(
        self, generate: Generate, latent_shape: tuple[int, ...], device: torch.device | str, place: WorkSplit
    ) -> Seen:
        features, scores, seconds = [], [], 0.0
        for rows in self._batches(place.rows(self.protocol.images), "judge: generating"):
            prompts = [self.protocol.prompts[row] for row in rows]
            seeds = [self.protocol.seeds[row] for row in rows]
            noise = draw_noise(seeds, latent_shape)
            start = time.perf_counter()
            made = finite_uint8(generate(noise, prompts), prompts, seeds).cpu()
            seconds += time.perf_counter() - start
            images = resized(made, self.protocol.side).to(device)
            features.append(self.extractor(images).cpu())
            if self.clip is not None:
                scores.append(self.clip(images, prompts).cpu())
        return Seen(torch.cat(features), torch.cat(scores) if scores else None, seconds)

    def _batches(self, rows: list[int], what: str) -> Iterator[list[int]]:
        """At most `batch_size` rows at a time under a progress bar that appears after five seconds."""
        with tqdm(total=len(rows), desc=what, unit="image", delay=5, leave=False) as bar:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))

    # ---- the real pictures ----

    def reference(self, device: torch.device | str, place: WorkSplit = SINGLE_PROCESS) -> FeatureStatistics:
        """Statistics of the real pictures, computed once and kept (collective)."""
        if self._reference is None:
            file, files = self._cache_file(), self.protocol.reference_files
            kept = file is not None and file.is_file()
            if files[0].suffix == ".npz":
                self._reference = read_statistics(files[0])
            elif place.gather(torch.tensor([kept])).all():
                self._reference = FeatureStatistics(**load_file(file))
            else:
                self._reference = self._look_at_real(files, device, place)
                if file is not None and place.rank == 0:
                    write_tensors(file, self._reference._asdict())
        return self._reference

    def _look_at_real(self, files: list[Path], device: torch.device | str, place: WorkSplit) -> FeatureStatistics:
        features = []
        for rows in self._batches(place.rows(len(files)), "judge: looking at real pictures"):
            pictures = read_pictures([files[row] for row in rows], self.protocol.side)
            features.append(self.extractor(pictures.to(device)).cpu())
        return FeatureStatistics.of(place.joined(torch.cat(features), len(files)).cpu())

    def _cache_file(self) -> Path | None:
        key = hashlib.blake2b(f"{self.digest} {self.extractor.identity}".encode(), digest_size=6)
        return self.cache and self.cache / f"real-{self.protocol.name}-{key.hexdigest()}.safetensors"


def read_statistics(file: Path) -> FeatureStatistics:
    """Statistics that other tools keep: an .npz of `mu` (D,) and `sigma` (D, D); raises UserError if it is none."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
        return FeatureStatistics.of_moments(mean, covariance)
    except Exception as error:  # numpy raises whatever the bytes lead it to
        raise UserError(f"{file}: is no .npz of mu (D,) and sigma (D, D) ({error})") from error
