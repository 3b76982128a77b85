"""A lock on a folder that dies with its process, for folders that one process at a time may write."""

import errno
import fcntl
import os
import sys
from pathlib import Path

from diffgan.errors import UserError

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none


class FolderLock:
    """Holds a folder for this process, by a lock on a file in it. The folder is created.

    The system releases the lock when the process ends in any way, so there are no stale ones; the file stays. It is a
    lock of the process (`lockf`): data loading workers do not inherit it, which may outlive a killed process by
    seconds. On a file system without locks, one line warns.

    Args:
        folder: what is locked.
        purpose: what the process does in the folder, for the name of the file and messages: "fit".

    Raises:
        UserError: another process holds the folder, or the system refuses (no permission, disk full).
    """

    def __init__(self, folder: Path, purpose: str):
        self._folder, self._purpose, self._owner = folder, purpose, os.getpid()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / f"{purpose}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            self._lock()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"{self._folder}: another {self._purpose} is running in this folder; wait until it has ended, or "
                    "choose another folder"
                ) from error
            if error.errno not in WITHOUT_LOCKS:
                raise
            warning = f"this file system has no locks; run no other {self._purpose} in this folder meanwhile"
            print(f"diffgan: {self._folder}: {warning}", file=sys.stderr)

    def release(self) -> None:
        """Let other processes have the folder; does nothing in a child of the process that holds it."""
        if os.getpid() == self._owner:
            os.close(self._descriptor)
