"""The verb `pairs status`: how much of a pair set is done, which workers are active, and how long the rest will take.

It only lists files and reads headers, so nothing here imports torch.
"""

import shutil
import time
from collections.abc import Iterator
from typing import NamedTuple

from diffgan.cli.pairs.units import format_duration, format_size
from diffgan.pairs.claims import last_refresh, read_claim
from diffgan.pairs.headers import header_fault, read_header
from diffgan.pairs.listing import SetListing, list_set
from diffgan.pairs.manifest import MANIFEST, Manifest
from diffgan.storage.local import LocalStore
from diffgan.storage.open import open_store
from diffgan.storage.processes import is_dead
from diffgan.storage.store import Store

RECENT_SECONDS = 3600  # over which the rate is measured
LEASE_SECONDS = 600  # the default of `PairWriter`; the folder does not say which one the workers have
Line = tuple[str, str]  # a name and the text beside it


def status(folder: str) -> None:
    """How much of a pair set is done: pairs, claims, rate, time left, disk.

    Args:
        folder: of the pair set: a path or URL.
    """
    store = open_store(folder)
    manifest = Manifest.read(store)
    lines = _report(store, manifest, list_set(store, manifest))
    print("\n".join(f"{name:<10}{text}" for name, text in lines))


def _report(store: Store, manifest: Manifest, listing: SetListing) -> Iterator[Line]:
    yield from _set_lines(store, manifest, listing)
    claims = [_claim_state(store, shard, listing) for shard in sorted(listing.claims.keys() - listing.shards.keys())]
    yield from (("claimed", claim.text) for claim in claims)
    active = any(claim.active for claim in claims)
    yield from _rate_lines(manifest, listing, active, _time_started(store))
    yield "disk", _disk_text(store, manifest, listing)
    if isinstance(store, LocalStore):
        yield from _header_lines(store, manifest, listing)


def _set_lines(store: Store, manifest: Manifest, listing: SetListing) -> Iterator[Line]:
    done = listing.pairs_done(manifest)
    partial = done - listing.pairs_in_shards(manifest)
    yield "set", f"{store.place}: {manifest.pairs} pairs in {manifest.shards} shards of {manifest.shard_size}"
    yield "teacher", f"{manifest.teacher}, {manifest.steps} steps, guidance {manifest.guidance}, {manifest.precision}"
    share = f"{done / manifest.pairs:.1%}"
    yield "done", f"{done} pairs ({share}): {len(listing.shards)} shards and {partial} pairs in partial shards"
    yield "missing", f"{manifest.pairs - done} pairs"


# ---- claims ----


class ClaimState(NamedTuple):
    """active: whether the claim's worker still makes pairs, as far as can be known.  text: about the claim."""

    active: bool
    text: str


def _claim_state(store: Store, shard: int, listing: SetListing) -> ClaimState:
    claim = read_claim(store, shard)
    silent = time.time() - last_refresh(claim, listing.claims[shard])
    worker = f"shard {shard} by an unknown worker"
    if claim is not None:
        since = format_duration(time.time() - claim.since)
        worker = f"shard {shard} by {claim.worker.host}, process {claim.worker.pid}, since {since}"
        if is_dead(claim.worker):
            return ClaimState(False, f"{worker}; dead, any worker may take it over")
    if silent > LEASE_SECONDS:
        advice = "a worker with fewer lease_seconds may take it over"
        return ClaimState(False, f"{worker}; not refreshed for {format_duration(silent)}, {advice}")
    return ClaimState(True, f"{worker}, refreshed {format_duration(silent)} ago")


# ---- rate ----


class Rate(NamedTuple):
    """pairs: per second.  seconds: the period over which that was measured.  end: of the period, since 1970."""

    pairs: float
    seconds: float
    end: float


def _rate_lines(manifest: Manifest, listing: SetListing, active: bool, started: float) -> Iterator[Line]:
    rate = recent_rate(manifest, listing, time.time() if active else None, started)
    if rate is None or not rate.pairs:
        yield "rate", "unknown: nothing was finished yet"
        return
    period = f"the last {format_duration(rate.seconds)}"
    if not active:
        period += f" of work, which ended {format_duration(time.time() - rate.end)} ago"
    yield "rate", f"{rate.pairs:.3g} pairs/s over {period} (by the files' times)"
    missing = manifest.pairs - listing.pairs_done(manifest)
    time_left = f"{format_duration(missing / rate.pairs)} at that rate" if missing else "none"
    yield "time left", time_left + ("" if active else "; no worker seems to be active")


def recent_rate(manifest: Manifest, listing: SetListing, now: float | None, started: float) -> Rate | None:
    """Pairs per second in the last hour; None if there is no file of pairs.

    Args:
        now: the end of that hour, in seconds since 1970; None, if no worker is active, is the time of the newest file.
        started: when the set was created, in seconds since 1970.
    """
    files = [(entry.modified, len(manifest.span(shard))) for shard, entry in listing.shards.items()]
    files += [(entry.modified, len(numbers)) for numbers, entry in listing.partial_entries()]
    if not files:
        return None
    end = now or max(modified for modified, _ in files)
    begin = max(end - RECENT_SECONDS, started)
    seconds = max(end - begin, 1e-3)
    pairs = sum(count for modified, count in files if begin <= modified <= end)
    return Rate(pairs / seconds, seconds, end)


def _time_started(store: Store) -> float:
    """When the set was created, in seconds since 1970."""
    return store.entries()[MANIFEST].modified


# ---- disk ----


def _disk_text(store: Store, manifest: Manifest, listing: SetListing) -> str:
    in_shards = sum(entry.size for entry in listing.shards.values())
    used = in_shards + sum(entry.size for _, entry in listing.partial_entries())
    text = f"{format_size(used)} now"
    if pairs := listing.pairs_in_shards(manifest):
        text += f", {format_size(in_shards / pairs * manifest.pairs)} in the end"
    if isinstance(store, LocalStore):
        text += f", {format_size(shutil.disk_usage(store.folder).free)} free"
    return text


# ---- headers ----


def _header_lines(store: LocalStore, manifest: Manifest, listing: SetListing) -> Iterator[Line]:
    """What the headers of the finished shards say."""
    truncated = 0
    for shard in listing.shards:
        file = manifest.file(store.folder, shard)
        try:
            header = read_header(file)
            if fault := header_fault(header):
                raise ValueError(fault)
            truncated += header.get("truncated", 0)
        except FileNotFoundError:  # deleted since it was listed
            continue
        except (OSError, ValueError) as error:
            yield "damaged", f"{file} ({error}); delete it and run `diffgan predict` again"
    yield "truncated", f"{truncated} prompts of finished shards were longer than the tokenizer takes"
