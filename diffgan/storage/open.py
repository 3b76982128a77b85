"""The store at a path or URL."""

from pathlib import Path

from diffgan.errors import UserError
from diffgan.storage.cache import CACHE_GB, Cache, cache_folder
from diffgan.storage.local import LocalStore
from diffgan.storage.store import Store


def open_store(place: str | Path, cache_gb: float = CACHE_GB) -> Store:
    """The store at a path or URL; of remote files, copies of up to `cache_gb` (10^9 bytes) are kept in `cache_folder`.

    Raises:
        UserError: the URL's protocol is unknown or its package not installed, or `cache_gb` is not above 0.
    """
    protocol, separator, path = str(place).partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStore(Path(path or place))
    if not cache_gb > 0:
        raise UserError(f"cache_gb: {cache_gb} must be above 0")
    from diffgan.storage.remote import RemoteStore  # which is a Store

    return RemoteStore(str(place), Cache(cache_folder(), cache_gb * 1e9))
