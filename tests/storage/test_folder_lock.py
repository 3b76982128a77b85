"""The lock on a folder: of one process, gone with it, not inherited, and file systems without locks."""

import errno
import fcntl
import os
import signal

import pytest

from diffgan.errors import UserError
from diffgan.storage.folder_lock import FolderLock


def hold(folder, reader, writer):
    """In a child: hold the folder until killed, with a child of its own that lives on until `reader` ends."""
    FolderLock(folder, "fit")
    grandchild = os.fork()
    if grandchild == 0:
        os.read(reader, 1)
        os._exit(0)
    os.write(writer, b"x")
    signal.pause()


def test_lock_is_of_one_process_and_dies_with_it(tmp_path):
    (until, end), (ready, done) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        hold(tmp_path / "run", until, done)
        os._exit(1)
    os.read(ready, 1)
    with pytest.raises(UserError, match=f"^{tmp_path / 'run'}: another fit is running in this folder"):
        FolderLock(tmp_path / "run", "fit")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    FolderLock(tmp_path / "run", "fit").release()  # though the killed process has a child
    os.close(end)


def test_file_systems_without_locks_are_named_in_one_line(tmp_path, monkeypatch, capsys):
    def lockf(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    FolderLock(tmp_path, "fit").release()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diffgan: {tmp_path}: this file system has no locks")


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: cannot be written \(Not a directory\)"):
        FolderLock(tmp_path / "file" / "run", "fit")
