"""A store in a folder of this machine, or of a network file system that it mounts."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffgan.errors import UserError
from diffgan.storage.atomic import PARTIAL, partial_path, remove_stale_partials, write_atomic, write_synced
from diffgan.storage.store import MAX_READ_BYTES, Entry, Store


class LocalStore(Store):
    """A folder of this machine, or of a network file system that it mounts.

    Args:
        folder: is created by the first write.
    """

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)

    def entries(self, folder: str = "") -> dict[str, Entry]:
        entries = {}
        with contextlib.suppress(FileNotFoundError), self._user_error(folder), os.scandir(self.folder / folder) as scan:
            for file in scan:
                with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                    if file.is_file() and not file.name.endswith(PARTIAL):
                        status = file.stat()
                        entries[f"{folder}/{file.name}".lstrip("/")] = Entry(status.st_size, status.st_mtime)
        return dict(sorted(entries.items()))

    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), self._user_error(name), (self.folder / name).open("rb") as file:
            content = file.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise self.too_long(name, max_bytes)
            return content

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.folder / name, data)

    def create(self, name: str, data: bytes) -> bool:
        file = self.folder / name
        partial = partial_path(file)
        with self._user_error(name):
            try:
                write_synced(partial, data)
                os.link(partial, file)  # name and content appear in one step; fails if the file exists
            except FileExistsError:
                if not file.parent.is_dir():  # a file has the name of the folder
                    raise
                return False
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink()
        return True

    def remove(self, name: str) -> None:
        with self._user_error(name):
            (self.folder / name).unlink(missing_ok=True)

    def local(self, name: str) -> Path | None:
        file = self.folder / name
        return file if file.is_file() else None

    def sweep(self, seconds: float, folders: Sequence[str]) -> None:
        for folder in ("", *folders):
            with contextlib.suppress(FileNotFoundError), self._user_error(folder):
                remove_stale_partials(self.folder / folder, seconds)

    def prune(self, folders: Sequence[str]) -> None:
        for folder in folders:
            with contextlib.suppress(OSError):  # not empty, or already removed
                (self.folder / folder).rmdir()

    @contextlib.contextmanager
    def _user_error(self, name: str) -> Iterator[None]:
        """Turns an error of the system into a UserError that names the file; FileNotFoundError is left as it is."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            message = f"{self.path(name)}: {error.strerror}; fix this and run the same command again"
            raise UserError(message) from error
