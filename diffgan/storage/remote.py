"""A folder behind any URL that fsspec opens: whole objects, with retries and with copies here to be memory-mapped."""

import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from diffgan.errors import UserError
from diffgan.storage.cache import Cache, is_disks_fault, unwritable
from diffgan.storage.retry import reason, with_retries
from diffgan.storage.store import Entry, Store

Answer = TypeVar("Answer")

# What tells one version of a file from the next; every service has one of them.
STAMPS = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


class RemoteStore(Store):
    """An object store's folder: `s3://`, `gs://`, `hf://`, `memory://`, ...

    Credentials and endpoints are those that the service's own tools use (such as `AWS_*` of the environment).
    `create` is exclusive where the service can do it in one step (S3, Google Cloud, `memory://`); elsewhere fsspec
    looks first and writes then. An entry's time is 0 where the service tells none.

    Raises:
        UserError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, cache: Cache):
        self.place, self.cache = url, cache
        self._connections: dict[int, fsspec.AbstractFileSystem] = {}
        self.root = self._connect().rstrip("/")

    def entries(self, folder: str = "") -> dict[str, Entry]:
        where = self._object(folder).rstrip("/")
        try:
            listed = self._ask(folder, lambda: self.fs.ls(where, detail=True))
        except FileNotFoundError:
            return {}
        files = {f"{folder}/{_last(i['name'])}".lstrip("/"): i for i in listed if i["type"] == "file"}
        inside = {name: info for name, info in files.items() if info["name"].strip("/") != where.strip("/")}
        return {name: Entry(int(info["size"]), _time(info)) for name, info in sorted(inside.items())}

    def read(self, name: str) -> bytes | None:
        try:
            return self._ask(name, lambda: self.fs.cat_file(self._object(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        try:
            self._ask(name, lambda: self.fs.pipe_file(self._object(name), data))
        except FileNotFoundError as error:
            raise self._no_bucket(name, error) from error

    def create(self, name: str, data: bytes) -> bool:
        attempts = 0

        def put() -> None:
            nonlocal attempts
            attempts += 1
            self.fs.pipe_file(self._object(name), data, mode="create")

        try:
            self._ask(name, put)
        except FileExistsError:
            return attempts > 1 and self.read(name) == data  # it was written, but the answer got lost
        except FileNotFoundError as error:
            raise self._no_bucket(name, error) from error
        return True

    def remove(self, name: str) -> None:
        try:
            self._ask(name, lambda: self.fs.rm_file(self._object(name)))
        except FileNotFoundError:
            return

    def local(self, name: str) -> Path | None:
        info = self._info(name)
        return info and self.cache.file(self._key(name, info), info["size"], lambda file: self._fetch(name, info, file))

    def forget(self, name: str) -> bool:
        if (info := self._info(name)) is not None:
            self.cache.drop(self._key(name, info))
        return info is not None

    # ---- requests ----

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system, connected anew in a forked process (the parent's is not closed here: it is in use there)."""
        if os.getpid() not in self._connections:
            self._connect()
        return self._connections[os.getpid()]

    def _connect(self) -> str:
        """Connect this process; the folder's path in the file system."""
        protocol = self.place.split("://")[0]
        try:
            # No caches: what others write must be seen.
            fs, root = url_to_fs(self.place, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", protocol).split(".")[0]
            raise UserError(f"{self.place}: {reason(error)}: pip install {package}") from error
        except ValueError as error:
            raise UserError(f"{self.place}: {reason(error)}; name a path or a URL that fsspec opens") from error
        self._connections[os.getpid()] = fs
        return root

    def _ask(self, name: str, request: Callable[[], Answer]) -> Answer:
        return with_retries(self.path(name) if name else self.place, request)

    def _no_bucket(self, name: str, error: FileNotFoundError) -> UserError:
        return UserError(f"{self.path(name)}: {reason(error)}; make the bucket, or name another folder")

    def _info(self, name: str) -> dict[str, Any] | None:
        try:
            info = self._ask(name, lambda: self.fs.info(self._object(name)))
        except FileNotFoundError:
            return None
        return info if info["type"] == "file" else None

    def _fetch(self, name: str, info: dict[str, Any], file: Path) -> None:
        def fetch() -> None:
            try:
                self.fs.get_file(self._object(name), str(file))
            except OSError as error:
                if is_disks_fault(error, file):
                    raise unwritable(file.parent, error) from error
                raise
            if (got := file.stat().st_size) != info["size"]:
                raise OSError(f"{got} of {info['size']} bytes came")

        try:
            self._ask(name, fetch)
        except FileNotFoundError as error:
            raise UserError(f"{self.path(name)}: vanished while it was read; run the same command again") from error

    def _object(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _key(self, name: str, info: dict[str, Any]) -> str:
        """Another version of a file has another key."""
        stamp = next((info[key] for key in STAMPS if info.get(key)), "")
        version = f"{self.path(name)} {info['size']} {stamp}"
        return f"{hashlib.blake2b(version.encode(), digest_size=16).hexdigest()}-{_last(name)}"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _time(info: dict[str, Any]) -> float:
    """Seconds since 1970; 0 if the service does not tell."""
    found = next((info[key] for key in TIMES if info.get(key)), 0.0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found.replace("Z", "+00:00"))
    return found.timestamp() if isinstance(found, datetime) else float(found)
