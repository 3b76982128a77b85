"""The store at a path or URL."""

from pathlib import Path

from diffgan.errors import UserError
from diffgan.storage.cache import CACHE_GB, Cache, cache_folder
from diffgan.storage.local import LocalStore
from diffgan.storage.remote import RemoteStore
from diffgan.storage.store import Store


def open_store(place: str | Path, cache_gb: float = CACHE_GB) -> Store:
    """The store at a path or URL.

    Args:
        place: a path, or a URL that fsspec opens.
        cache_gb: limit in units of 10^9 bytes for local copies of remote files, which `cache_folder` holds.

    Raises:
        UserError: `place` is empty, the URL's protocol is unknown or its package not installed, or `cache_gb` is not
            above 0.
    """
    if not str(place).strip():
        raise UserError(f"folder: {str(place)!r} names no folder; give a path or a URL")
    protocol, separator, path = str(place).partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStore(Path(path or place))
    if not cache_gb > 0:
        raise UserError(f"cache_gb: {cache_gb} must be above 0")
    return RemoteStore(str(place), Cache(cache_folder(), cache_gb * 1e9))
