"""A store in a folder of this machine, or of a network file system it mounts."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from diffgan.errors import UserError
from diffgan.storage.atomic import PARTIAL, partial_of, sweep_partials, write_atomic, write_partial
from diffgan.storage.store import Entry, Store


class LocalStore(Store):
    """A folder of this machine, or of a network file system it mounts."""

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)

    def entries(self, folder: str = "") -> dict[str, Entry]:
        found = {}
        with contextlib.suppress(FileNotFoundError), self._explained(folder), os.scandir(self.folder / folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                    if file.is_file() and not file.name.endswith(PARTIAL):
                        state = file.stat()
                        found[f"{folder}/{file.name}".lstrip("/")] = Entry(state.st_size, state.st_mtime)
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), self._explained(name):
            return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.folder / name, data)

    def create(self, name: str, data: bytes) -> bool:
        file = self.folder / name
        partial = partial_of(file)
        with self._explained(name):
            try:
                write_partial(partial, data)
                os.link(partial, file)  # fails if there is one: content and name come in one step
            except FileExistsError:
                if not file.parent.is_dir():  # it is the folder's place that is taken
                    raise
                return False
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink()
        return True

    def remove(self, name: str) -> None:
        with self._explained(name):
            (self.folder / name).unlink(missing_ok=True)

    def local(self, name: str) -> Path | None:
        file = self.folder / name
        return file if file.is_file() else None

    def sweep(self, seconds: float, folders: Sequence[str]) -> None:
        for folder in ("", *folders):
            with contextlib.suppress(FileNotFoundError), self._explained(folder):
                sweep_partials(self.folder / folder, seconds)

    def prune(self, folders: Sequence[str]) -> None:
        for folder in folders:
            with contextlib.suppress(OSError):  # not empty, or gone already
                (self.folder / folder).rmdir()

    @contextlib.contextmanager
    def _explained(self, name: str):
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{self.path(name)}: {error.strerror}; mend it and run the same command") from error
