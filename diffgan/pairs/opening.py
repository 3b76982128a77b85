"""Opening a pair set to fill it: creating its manifest, or checking that what the folder holds is the same set."""

import re
import sys
from pathlib import Path

from diffgan.errors import UserError
from diffgan.pairs.claims import CLAIMS
from diffgan.pairs.headers import parse_header
from diffgan.pairs.listing import PARTIAL_SHARD, PARTIAL_SHARDS
from diffgan.pairs.manifest import MADE, MANIFEST, Manifest
from diffgan.pairs.shard_format import read_shard, shards_size
from diffgan.pairs.shard_reader import open_shard
from diffgan.storage.embedded import EMBEDDED
from diffgan.storage.local import LocalStore
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.teachers.base import Teacher
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.earlier import remedy_for

SHARD = re.compile(r"pairs-\d+-of-\d+\.safetensors")
COMPARED_BYTES = 10e9  # shards up to this size in all are compared with their digests: ten seconds at each start


def open_pair_set(folder: str | Path, manifest: Manifest, lease_seconds: float) -> Store:
    """The store of a pair set, which is created if the folder holds none.

    Shards of a local set are checked; remote shards are not, as each would have to be fetched: see
    `diffgan pairs verify`.

    Args:
        folder: path or URL.
        manifest: of the set to be made or finished.
        lease_seconds: half-written files of other machines are removed when they are older.

    Raises:
        UserError: the folder cannot be written, holds another set, a shard is damaged, or the manifest could not be
            read again.
    """
    store = open_store(folder)
    if fault := manifest.fault():
        raise UserError(f"{store.place}: {fault}; change the configuration")
    if store.read(MANIFEST) is None:
        _require_same_leftovers(store, manifest)
    if not store.create(MANIFEST, manifest.content()):
        _require_same_manifest(store, manifest)
    store.sweep(lease_seconds, (CLAIMS, PARTIAL_SHARDS))
    if isinstance(store, LocalStore):
        _check_shards(store, manifest)
    return store


def bytes_are_compared(store: Store, manifest: Manifest) -> bool:
    """Whether `open_pair_set` compares the bytes of the shards with their digests."""
    return isinstance(store, LocalStore) and shards_size(store, manifest) <= COMPARED_BYTES


def teacher_of(manifest: Manifest, given: str | None, place: str) -> str:
    """The path of a set's teacher, to make pairs or embeddings again. One line names it before it is loaded.

    A set may come from anywhere, so its manifest alone does not decide what is downloaded.

    Args:
        given: what the user names; None: the teacher of the manifest, if it is a directory or part of the package.
        place: of the set, for messages.

    Raises:
        UserError: the manifest names something else, such as a hub id.
    """
    name = manifest.teacher
    if given is None and name != EMBEDDED and not Path(name).is_dir():
        raise UserError(f"{place}: its teacher {name} is no directory here; if you trust it, say --teacher {name}")
    print(f"{place}: teacher {given or name}", file=sys.stderr, flush=True)
    return given or name


def require_teacher(manifest: Manifest, teacher: Teacher, place: str) -> None:
    """Raises: UserError if the teacher loaded from `place` is not the one that made the set."""
    if (digest := weights_digest(teacher)) != manifest.teacher_digest:
        raise UserError(
            f"teacher {place}: not the teacher of this set (digest {manifest.teacher_digest} there, {digest} here); "
            + remedy_for(manifest.teacher_digest, "give its present path: --teacher")
        )


def _require_same_leftovers(store: Store, manifest: Manifest) -> None:
    """Check the shards and partial shards in a folder without a manifest; damaged partial shards are ignored here.

    Raises:
        UserError: a shard is damaged, or a shard or partial shard belongs to another set.
    """
    shards = [name for name in store.entries() if SHARD.fullmatch(name)]
    if not isinstance(store, LocalStore):
        shards = shards[:1]  # each remote shard would have to be fetched
    for name in shards:
        shard = open_shard(store, name, "run the same command again")
        manifest.require_same(shard.header, store.path(name))
    for name in filter(PARTIAL_SHARD.search, store.entries(PARTIAL_SHARDS)):
        try:
            header = parse_header(store.read(name) or b"")
        except ValueError:
            continue
        manifest.require_same(header, store.path(name))


def _require_same_manifest(store: Store, manifest: Manifest) -> None:
    """Compare with the manifest in the folder; settings that change latents by rounding are only reported.

    Raises:
        UserError: the folder holds another set.
    """
    stored = Manifest.parse(store.read(MANIFEST), store.path(MANIFEST))
    manifest.require_same(stored.identity(), store.path(MANIFEST))
    for name in ("batch_size", *MADE):
        before, now = getattr(stored, name), getattr(manifest, name)
        if before not in (now, ""):
            print(
                f"diffgan: {store.place}: started with {name} {before}, continued with {now}: latents may differ by "
                "rounding from those of an uninterrupted run",
                file=sys.stderr,
            )


def _check_shards(store: LocalStore, manifest: Manifest) -> None:
    """Raises: UserError if a shard of a local set is damaged or belongs to another set."""
    compare = bytes_are_compared(store, manifest)
    for shard in range(manifest.shards):
        if manifest.file(store.folder, shard).exists():
            read_shard(store, manifest, shard, compare)
