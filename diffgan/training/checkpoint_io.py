"""Checkpoint files written and read tensor by tensor: the format of `torch.save` without a copy of the checkpoint.

The format is PyTorch's (notes on serialization): a ZIP archive, not compressed, of a pickle `data.pkl` and the bytes of
each storage as `data/<number>`. Lightning's default builds the whole file in memory, and again in TMPDIR.
"""

import contextlib
import io
import os
import pickle
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.storage import TypedStorage, UntypedStorage

from diffgan.errors import UserError
from diffgan.training.checkpoints import PARTIAL, contiguous, read_mapped, with_own_memory

FOLDER = "archive"  # first part of the records' names, as in files that torch.save writes to a stream
FORMAT_VERSION = b"3\n"
ALIGNMENT = 64  # bytes; of the tensors in a file that is mapped into memory
ZIP_HEADER, ZIP64_SIZES, EXTRA_FIELD = 30, 20, 4  # bytes in front of a record, beside its name
PADDING_FIELD = 0x4246  # "FB": PyTorch's mark of an extra field that only aligns


class StreamingCheckpointIO(TorchCheckpointIO):
    """Writes and reads each tensor as it is reached: beside the training, one tensor at a time is in memory.

    Tensors are written contiguous, whatever their memory format is, and as tensors of the CPU. Nothing passes through
    TMPDIR or is copied on the device. A file gets its name when it is complete and on the disk.
    """

    def __init__(self):
        super().__init__()
        self._in_background: bool | None = None  # None: outside of the context
        self._writing: _Call | None = None

    @contextlib.contextmanager
    def in_background(self, enabled: bool = True) -> Iterator[None]:
        """Context manager: a checkpoint saved inside is copied to host memory and written while the training continues.

        Whether `enabled` or not, an error of a save inside is raised by `wait`, not by the save itself: of several
        processes the first alone writes, and Lightning has the others wait for it at the end of a save.

        The copy takes the size of the file in host memory until the file is written: every tensor of the checkpoint
        once. (With FSDP2 the first process also holds the gathered checkpoint while the copy is made.)
        """
        self._in_background = enabled
        try:
            yield
        finally:
            self._in_background = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, after the one in the background; raises OSError if either cannot be written."""
        self.wait()
        if storage_options is not None or "://" in str(path):  # a URL: Lightning's own way
            super().save_checkpoint(contiguous(checkpoint), path, storage_options)
            return
        archive = CheckpointArchive(checkpoint)
        if self._in_background:
            archive.copy_to_host()
        if self._in_background is None:
            archive.write(Path(path))
        else:
            self._writing = _Call(partial(archive.write, Path(path)), in_thread=self._in_background)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A checkpoint on the CPU whose weights and optimizer states are mapped from the file until they are copied."""
        if "://" in str(path):  # a URL: Lightning's own way
            return super().load_checkpoint(path, weights_only=weights_only)
        return with_own_memory(read_mapped(path, weights_only))

    def is_writing(self) -> bool:
        """Whether a file is being written in the background."""
        return self._writing is not None and self._writing.is_running()

    def wait(self) -> None:
        """Wait for the file that is written in the background; raises OSError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.wait()


class _Call:
    """A call whose error `wait` raises.

    in_thread: it runs in a thread, which does not keep the process from ending; otherwise at once.
    """

    def __init__(self, call: Callable[[], None], in_thread: bool):
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if not in_thread:
            self._run(call)
            return
        self._thread = threading.Thread(target=self._run, args=(call,), name="checkpoint-writer", daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            self._error = error

    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until a thread has ended and freed its tensors: Python aborts if it ends meanwhile."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


def stream_checkpoints(strategy: Strategy) -> StreamingCheckpointIO:
    """Have a strategy write and read its checkpoints with `StreamingCheckpointIO`, which is returned.

    Raises:
        UserError: the trainer was given another CheckpointIO plugin.
    """
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = StreamingCheckpointIO()
    if not isinstance(strategy.checkpoint_io, StreamingCheckpointIO):
        name = type(strategy.checkpoint_io).__name__
        raise UserError(f"trainer.plugins: {name}: checkpoints are written by diffgan itself; leave this plugin out")
    return strategy.checkpoint_io


# ---- the file ----


class CheckpointArchive:
    """A checkpoint as `torch.save` lays it out: a pickle, and the bytes of each storage as a record of its own.

    It refers to the checkpoint's tensors, so these must not change before `write` has ended, or `copy_to_host` has.

    Args:
        checkpoint: nested dictionaries and lists of tensors and plain values.
    """

    def __init__(self, checkpoint: dict[str, Any]):
        pickled = io.BytesIO()
        pickler = _Pickler(pickled)
        pickler.dump(checkpoint)
        self._pickle, self._tensors = pickled.getvalue(), pickler.records

    def copy_to_host(self) -> None:
        """Copy every tensor into host memory."""
        for i, tensor in enumerate(self._tensors):
            data = _host_bytes(tensor)
            is_a_view = isinstance(tensor, UntypedStorage) and tensor.device.type == "cpu"
            self._tensors[i] = data.clone() if is_a_view else data

    def write(self, path: Path) -> None:
        """Write the file under a partial name, wait until it is on the disk, and give it its name.

        A path that ends in `.partial` is written directly. Folders are created.

        Raises:
            OSError: the system refuses (disk full, no permission). The partial file is removed.
        """
        unnamed = path if path.suffix == PARTIAL else path.with_name(path.name + PARTIAL)
        unnamed.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unnamed.open("wb") as stream:
                self._write_records(stream)
                stream.flush()
                os.fsync(stream.fileno())
            unnamed.replace(path)
        except BaseException:
            unnamed.unlink(missing_ok=True)
            raise

    def _write_records(self, stream: IO[bytes]) -> None:
        """Raises OSError. The record `.format_version` is omitted: it promises offsets as torch.save spaces them."""
        with zipfile.ZipFile(stream, "w") as archive:
            _add(archive, stream, "data.pkl", self._pickle)
            _add(archive, stream, "byteorder", sys.byteorder.encode())
            for i, tensor in enumerate(self._tensors):
                _add(archive, stream, f"data/{i}", memoryview(_host_bytes(tensor).numpy()))
            _add(archive, stream, "version", FORMAT_VERSION)


def _add(archive: zipfile.ZipFile, stream: IO[bytes], name: str, data: bytes | memoryview) -> None:
    """Append a record whose bytes begin at a multiple of `ALIGNMENT` in the file."""
    record = zipfile.ZipInfo(f"{FOLDER}/{name}")
    start = stream.tell() + ZIP_HEADER + len(record.filename) + EXTRA_FIELD + ZIP64_SIZES
    padding = -start % ALIGNMENT
    record.extra = struct.pack("<HH", PADDING_FIELD, padding) + bytes(padding)
    with archive.open(record, "w", force_zip64=True) as file:
        file.write(data)


def _host_bytes(tensor: UntypedStorage | Tensor) -> Tensor:
    """The bytes of a storage, or of a tensor in contiguous order: (n,) uint8 on the CPU, not copied if possible."""
    if isinstance(tensor, UntypedStorage):
        return torch.empty(0, dtype=torch.uint8, device="cpu").set_(tensor.cpu())
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


# ---- the pickle ----


class _Contiguous(NamedTuple):
    """Stands in a pickle for the storage of a contiguous copy, which is made when the file is written.

    storage: an empty one of the tensor's kind.
    """

    storage: TypedStorage | UntypedStorage
    tensor: Tensor


class _Pickler(pickle.Pickler):
    """Pickles as `torch.save` does: a storage is replaced by its number, type, device and length.

    Attributes:
        records: by number, the storages, and the tensors that are to be stored contiguous.
    """

    def __init__(self, stream: IO[bytes]):
        super().__init__(stream, protocol=torch.serialization.DEFAULT_PROTOCOL)
        self.records: list[UntypedStorage | Tensor] = []
        self._numbers: dict[tuple, int] = {}  # of the storages, which several tensors may share

    def reducer_override(self, value: Any) -> Any:
        """How a tensor that is not contiguous is built again: as an empty one of its kind, with its shape."""
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_contiguous():
            return NotImplemented
        build, (storage, offset, _, _, *more) = torch.empty(0, dtype=value.dtype, device="cpu").__reduce_ex__(2)
        stride = torch.empty(value.shape, device="meta").stride()
        return build, (_Contiguous(storage, value), offset, tuple(value.shape), stride, *more)

    def persistent_id(self, value: Any) -> tuple | None:
        """("storage", type, number, device, length) of a storage, as `torch.load` expects it; None of other values."""
        if isinstance(value, _Contiguous):
            elements = value.tensor.numel() if isinstance(value.storage, TypedStorage) else value.tensor.nbytes
            return _reference(value.storage, self._append(value.tensor), elements)
        if isinstance(value, (TypedStorage, UntypedStorage)):
            typed = isinstance(value, TypedStorage)
            number = self._number_of(value._untyped_storage if typed else value)
            return _reference(value, number, value._size() if typed else value.nbytes())
        return None

    def _number_of(self, storage: UntypedStorage) -> int:
        if storage._cdata not in self._numbers:
            self._numbers[storage._cdata] = self._append(storage)
        return self._numbers[storage._cdata]

    def _append(self, record: UntypedStorage | Tensor) -> int:
        self.records.append(record)
        return len(self.records) - 1


def _reference(storage: TypedStorage | UntypedStorage, number: int, elements: int) -> tuple:
    """What a pickle holds in the place of a storage of so many numbers of one type, or of so many plain bytes."""
    kind = getattr(torch, storage._pickle_storage_type()) if isinstance(storage, TypedStorage) else UntypedStorage
    return "storage", kind, str(number), "cpu", elements
