"""The verb `pairs status`: how far a pair set is, who is at it, how long it still takes."""

import json
import shutil
import time
from collections.abc import Iterator

from safetensors import SafetensorError, safe_open

from diffgan.pairs.claims import last_sign, read_claim
from diffgan.pairs.manifest import MANIFEST, Manifest
from diffgan.pairs.partial_shards import Look, look
from diffgan.pairs.shard_reader import HEADER
from diffgan.storage.local import LocalStore
from diffgan.storage.open import open_store
from diffgan.storage.processes import is_dead
from diffgan.storage.store import Store

RECENT_SECONDS = 3600  # what the rate is measured over
LEASE_SECONDS = 600  # as `PairWriter` has it by default; the workers may have another, which the folder does not tell
UNITS_OF_SIZE = ("B", "kB", "MB", "GB", "TB", "PB")
UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def status(folder: str) -> None:
    """How far a pair set is: done, missing, claimed, rate, time left, disk.

    Args:
        folder: of the pair set: a path or URL.
    """
    store = open_store(folder)
    manifest = Manifest.read(store)
    print("\n".join(f"{name:<10}{line}" for name, line in _lines(store, manifest, look(store, manifest))))


def _lines(store: Store, manifest: Manifest, seen: Look) -> Iterator[tuple[str, str]]:
    made = seen.made(manifest)
    begun = made - sum(len(manifest.span(shard)) for shard in seen.shards)
    yield "set", f"{store.place}: {manifest.pairs} pairs in {manifest.shards} shards of {manifest.shard_size}"
    yield "teacher", f"{manifest.teacher}, {manifest.steps} steps, guidance {manifest.guidance}, {manifest.precision}"
    yield "done", f"{made} pairs ({made / manifest.pairs:.1%}): {len(seen.shards)} shards and {begun} pairs in parts"
    yield "missing", f"{manifest.pairs - made} pairs"
    at_work = False
    for shard in sorted(set(seen.claims) - set(seen.shards)):
        binding, line = _claim_line(store, shard, seen)
        at_work |= binding
        yield "claimed", line
    yield from _rate_lines(manifest, seen, made, at_work, _started(store))
    yield "disk", _disk_line(store, manifest, seen)
    if isinstance(store, LocalStore):
        cut, damaged = _truncated(store, manifest, seen)
        yield from (("damaged", f"{fault}; delete it and run `diffgan predict` again") for fault in damaged)
        yield "cut", f"{cut} prompts of whole shards were too long for the tokenizer"


def _claim_line(store: Store, shard: int, seen: Look) -> tuple[bool, str]:
    """Whether a claim's worker is at work, as far as one can tell, and the line about it."""
    claim = read_claim(store, shard)
    silent = time.time() - last_sign(claim, seen.claims[shard])
    who = f"{claim.worker.host}, process {claim.worker.pid}" if claim else "unknown"
    since = f", since {duration(time.time() - claim.since)}" if claim else ""
    if claim and is_dead(claim.worker):
        return False, f"shard {shard} by {who}{since}; dead, free for anyone"
    if silent > LEASE_SECONDS:
        freed = "free for anyone with fewer lease_seconds"
        return False, f"shard {shard} by {who}{since}; no sign for {duration(silent)}, {freed}"
    return True, f"shard {shard} by {who}{since}, last sign {duration(silent)} ago"


# ---- rate ----


def _rate_lines(manifest: Manifest, seen: Look, made: int, at_work: bool, started: float) -> Iterator[tuple[str, str]]:
    rate, seconds, ended = recent_rate(manifest, seen, time.time() if at_work else None, started)
    if not rate:
        yield "rate", "unknown: nothing was finished yet"
        return
    when = f"the last {duration(seconds)}" + (
        "" if at_work else f" of work, which ended {duration(time.time() - ended)} ago"
    )
    yield "rate", f"{rate:.3g} pairs/s over {when} (by the files' times)"
    left = duration((manifest.pairs - made) / rate) + " at that rate"
    yield "time left", ("none" if made == manifest.pairs else left) + ("" if at_work else "; no sign of anyone at work")


def recent_rate(manifest: Manifest, seen: Look, now: float | None, started: float) -> tuple[float, float, float]:
    """(pairs a second, seconds it is measured over, when they ended): of the last hour up to `now`, or up to the
    newest file if nobody is at work (None)."""
    files = [(entry.modified, len(manifest.span(shard))) for shard, entry in seen.shards.items()]
    files += [(entry.modified, len(numbers)) for parts in seen.parts.values() for numbers, entry in parts.items()]
    if not files:
        return 0.0, 0.0, 0.0
    end = now or max(modified for modified, _ in files)
    begin = max(end - RECENT_SECONDS, started)
    seconds = max(end - begin, 1e-3)
    return sum(pairs for modified, pairs in files if begin <= modified <= end) / seconds, seconds, end


def _started(store: Store) -> float:
    """When the set was begun."""
    return store.entries()[MANIFEST].modified


def duration(seconds: float) -> str:
    """ "3.5 hours" """
    size, unit = next((unit for unit in UNITS if seconds >= 2 * unit[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


# ---- disk ----


def _disk_line(store: Store, manifest: Manifest, seen: Look) -> str:
    files = [*seen.shards.values(), *(entry for parts in seen.parts.values() for entry in parts.values())]
    used = sum(entry.size for entry in files)
    pairs = sum(len(manifest.span(shard)) for shard in seen.shards)
    whole = sum(entry.size for entry in seen.shards.values())
    expected = f", {size(whole / pairs * manifest.pairs)} in the end" if pairs else ""
    free = f", {size(shutil.disk_usage(store.folder).free)} free" if isinstance(store, LocalStore) else ""
    return f"{size(used)} now{expected}{free}"


def size(count: float) -> str:
    """ "3.5 GB" """
    exponent = min(max((len(str(int(count))) - 1) // 3, 0), 5)
    return f"{count / 1000**exponent:.3g} {UNITS_OF_SIZE[exponent]}"


def _truncated(store: LocalStore, manifest: Manifest, seen: Look) -> tuple[int, list[str]]:
    """Prompts that were cut, and the shards that cannot be read, each with the reason."""
    cut, damaged = 0, []
    for file in (manifest.file(store.folder, shard) for shard in seen.shards):
        try:
            with safe_open(file, framework="pt") as archive:
                cut += dict(json.loads((archive.metadata() or {})[HEADER])).get("truncated", 0)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            damaged.append(f"{file} ({error})")
    return cut, damaged
