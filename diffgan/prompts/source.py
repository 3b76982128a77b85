"""The bytes of a prompt file, on a disk or behind any URL that fsspec opens."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

from diffgan.errors import UserError, reason
from diffgan.packaged import find_file

CHUNK_BYTES = 2**21  # fetched at a time when the whole file is read
PIECE_BYTES = 2**16  # parsed at a time: what has to be read to reach one prompt
MAX_LINE_BYTES = 2**23  # a longer line is not a prompt


class Source:
    """A file that is read by byte ranges: a local path, or a URL (`s3://`, `gs://`, `hf://`, `https://`, ...).

    Of a remote file exactly the requested ranges are fetched. Compressed files (`.gz`, `.bz2`, `.xz`, `.zip`) are
    decompressed on the fly; seeking backwards in them decompresses again from the start.

    Args:
        place: path or URL; a path that begins with `configs/` and is not there names a file of the package.

    Attributes:
        compressed: whether the file is compressed.
        suffix: of the file's name, in lower case; of a compressed file the suffix before the last one.

    Raises:
        UserError: here and in every method: the file cannot be opened or read.
    """

    def __init__(self, place: str):
        self.place = place
        name = place.split("?")[0] if "://" in place else place
        compression = infer_compression(name)
        self.compressed = compression is not None
        self.suffix = _suffix(name, self.compressed)
        cache = "readahead" if self.compressed else "none"  # decompressors read a few kilobytes at a time
        with self.user_errors():
            file_system, path = url_to_fs(find_file(place))
            self.file = file_system.open(path, "rb", block_size=CHUNK_BYTES, cache_type=cache, compression=compression)

    def read(self, begin: int, size: int) -> bytes:
        """The bytes [begin, begin + size), fewer at the end of the file."""
        with self.user_errors():
            self.file.seek(begin)
            return self.file.read(size)

    def begin(self) -> int:
        """Position of the first byte after the byte order mark, if there is one."""
        return len(codecs.BOM_UTF8) if self.read(0, len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0

    def pieces(self, begin: int) -> Iterator[bytes]:
        """The bytes from `begin` on, in pieces of about `PIECE_BYTES` that end with a line feed or the file."""
        rest = b""
        while chunk := self.read(begin, CHUNK_BYTES):
            begin += len(chunk)
            rest += chunk
            start = 0
            while end := rest.find(b"\n", start + PIECE_BYTES) + 1:
                yield rest[start:end]
                start = end
            rest = rest[start:]
            if len(rest) > MAX_LINE_BYTES:
                problem = f"a line of more than {MAX_LINE_BYTES >> 20} MiB ends after byte {begin}"
                raise self.error(f"{problem}; that is no prompt")
        if rest:
            yield rest

    def error(self, message: str) -> UserError:
        """A UserError whose message names the file."""
        return UserError(f"prompts {self.place}: {message}")

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """Turns any error of a file system, network or decompressor into a UserError that names the file."""
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            package = (getattr(error.__cause__, "name", None) or error.name or "").split(".")[0]
            raise self.error(f"{_reason(error)}: pip install {package}") from error
        except Exception as error:  # each of these libraries has its own error classes
            message = _reason(error)
            if "range requests" in message:
                message = "the server does not send byte ranges; put simplecache:: before the URL to download it first"
            else:
                message += "; name a file or a URL that can be read"
            raise self.error(message) from error


def _suffix(name: str, compressed: bool) -> str:
    """The last suffix of a file name, or the last but one if the file is compressed; lower case, "" if none."""
    suffixes = PurePosixPath(name).suffixes
    last = suffixes[-2:] if compressed else suffixes[-1:]
    return last[0].lower() if last else ""


def _reason(error: BaseException) -> str:
    """As `diffgan.errors.reason`; the FileNotFoundError of a remote file system is described by its cause."""
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return _reason(error.__cause__) if error.__cause__ else "No such file"
    return reason(error)
