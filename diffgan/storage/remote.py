"""A store behind any URL that fsspec opens: whole objects, with retries, and with local copies to memory-map."""

import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from diffgan.errors import UserError, reason
from diffgan.storage.cache import Cache, cache_error, is_local_disk_error
from diffgan.storage.retry import with_retries
from diffgan.storage.store import MAX_READ_BYTES, Entry, Store
from diffgan.storage.web_pages import is_web, linked_names, read_bounded

Result = TypeVar("Result")

# Fields of fsspec's `info` that change with the content of a file; every service has at least one of them.
VERSION_FIELDS = (
    *("ETag", "etag", "blob_id", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created"),
    *("Last-Modified", "Content-MD5", "Digest"),  # of web servers
)
TIME_FIELDS = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


class RemoteStore(Store):
    """A folder of an object store (`s3://`, `gs://`, `hf://`, `memory://`, ...), or of a web server with index pages.

    Credentials and endpoints are read from where the service's own tools read them (such as `AWS_*` of the
    environment). `create` is atomic where the service supports it (S3, Google Cloud, `memory://`); elsewhere fsspec
    first checks whether the file exists and then writes it. An entry's time is 0 if the service does not report it.

    Args:
        url: of the folder.
        cache: for the copies that `local` makes.

    Raises:
        UserError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, cache: Cache):
        self.place, self.cache = url, cache
        self._connections: dict[int, fsspec.AbstractFileSystem] = {}  # by process id
        self.root = self._connect().rstrip("/")

    def entries(self, folder: str = "") -> dict[str, Entry]:
        path = self._object(folder).rstrip("/")
        try:
            if is_web(self.fs):
                names = self._request(folder, lambda: linked_names(self.fs, path))
                return {f"{folder}/{name}".lstrip("/"): Entry(0, 0.0) for name in sorted(names)}
            infos = self._request(folder, lambda: self.fs.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        entries = {}
        for info in infos:
            # Some file systems list a file in place of its folder, or a folder as a file in itself.
            if info["type"] == "file" and info["name"].strip("/") != path.strip("/"):
                name = f"{folder}/{_last(info['name'])}".lstrip("/")
                entries[name] = Entry(int(info["size"] or 0), _modified(info))
        return dict(sorted(entries.items()))

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes | None:
        try:
            if is_web(self.fs):
                return self._request(name, lambda: read_bounded(self.fs, self._object(name), max_bytes))
            content = self._request(name, lambda: self.fs.cat_file(self._object(name)))
        except FileNotFoundError:
            return None
        if len(content) > max_bytes:
            raise self.too_long(name, max_bytes)
        return content

    def write(self, name: str, data: bytes) -> None:
        try:
            self._request(name, lambda: self.fs.pipe_file(self._object(name), data))
        except FileNotFoundError as error:
            raise self._no_bucket(name, error) from error

    def create(self, name: str, data: bytes) -> bool:
        attempts = 0

        def put() -> None:
            nonlocal attempts
            attempts += 1
            self.fs.pipe_file(self._object(name), data, mode="create")

        try:
            self._request(name, put)
        except FileExistsError:
            return attempts > 1 and self.read(name) == data  # an earlier attempt succeeded, but its response was lost
        except FileNotFoundError as error:
            raise self._no_bucket(name, error) from error
        return True

    def remove(self, name: str) -> None:
        try:
            self._request(name, lambda: self.fs.rm_file(self._object(name)))
        except FileNotFoundError:
            return

    def local(self, name: str) -> Path | None:
        info = self._info(name)
        if info is None:
            return None
        return self.cache.file(self._key(name, info), info.get("size"), lambda file: self._fetch(name, info, file))

    def forget(self, name: str) -> bool:
        info = self._info(name)
        if info is None:
            return False
        self.cache.drop(self._key(name, info))
        return True

    # ---- requests ----

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system; a forked process connects anew (the parent's connection stays open: the parent uses it)."""
        if os.getpid() not in self._connections:
            self._connect()
        return self._connections[os.getpid()]

    def _connect(self) -> str:
        """Connect this process; returns the folder's path in the file system."""
        protocol = self.place.split("://")[0]
        try:
            # No caches of fsspec, so that the writes of other processes are seen.
            fs, root = url_to_fs(self.place, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", protocol).split(".")[0]
            raise UserError(f"{self.place}: {reason(error)}: pip install {package}") from error
        except ValueError as error:
            raise UserError(f"{self.place}: {reason(error)}; name a path or a URL that fsspec opens") from error
        self._connections[os.getpid()] = fs
        return root

    def _request(self, name: str, request: Callable[[], Result]) -> Result:
        return with_retries(self.path(name) if name else self.place, request)

    def _no_bucket(self, name: str, error: FileNotFoundError) -> UserError:
        return UserError(f"{self.path(name)}: {reason(error)}; make the bucket, or name another folder")

    def _info(self, name: str) -> dict[str, Any] | None:
        """What fsspec reports about a file; None if it does not exist."""
        try:
            info = self._request(name, lambda: self.fs.info(self._object(name)))
        except FileNotFoundError:
            return None
        return info if info["type"] == "file" else None

    def _fetch(self, name: str, info: dict[str, Any], file: Path) -> None:
        """Download an object to `file`, with retries."""
        try:
            self._request(name, lambda: self._download(name, info.get("size"), file))
        except FileNotFoundError as error:
            raise UserError(f"{self.path(name)}: vanished while it was read; run the same command again") from error

    def _download(self, name: str, size: int | None, file: Path) -> None:
        bound = _Bound(self.cache.limit if size is None else size, self.path(name))
        try:
            self.fs.get_file(self._object(name), str(file), callback=bound)
        except OSError as error:
            if is_local_disk_error(error, file):
                raise cache_error(file.parent, error) from error
            raise
        received = file.stat().st_size
        if size is not None and received != size:
            raise OSError(f"received {received} of {size} bytes")

    def _object(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _key(self, name: str, info: dict[str, Any]) -> str:
        """The key of the local copy; it differs between versions of a file."""
        stamp = next((info[field] for field in VERSION_FIELDS if info.get(field)), "")
        if not stamp and info.get("size") is None:
            problem = "the server states neither size nor version of this file; copy the folder to this machine"
            raise UserError(f"{self.path(name)}: {problem}")
        version = f"{self.path(name)} {info.get('size')} {stamp}"
        return f"{hashlib.blake2b(version.encode(), digest_size=16).hexdigest()}-{_last(name)}"


class _Bound(Callback):
    """Ends a download that is longer than was announced.

    Args:
        limit: bytes.
        url: of the file, for the message.
    """

    def __init__(self, limit: float, url: str):
        super().__init__()
        self.limit, self.url = limit, url

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value > self.limit:
            raise UserError(f"{self.url}: the server sends more than {self.limit:.0f} bytes; it is not read further")


def _last(path: str) -> str:
    """The last component of a path."""
    return path.rstrip("/").rpartition("/")[2]


def _modified(info: dict[str, Any]) -> float:
    """When a file was written, in seconds since 1970; 0 if the service does not report it."""
    time = next((info[field] for field in TIME_FIELDS if info.get(field)), 0.0)
    if isinstance(time, str):
        time = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return time.timestamp() if isinstance(time, datetime) else float(time)
