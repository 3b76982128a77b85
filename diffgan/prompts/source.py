"""The bytes of a prompt file, on a disk or behind any URL that fsspec opens."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

from diffgan.errors import UserError

CHUNK = 2**21  # bytes fetched at a time when a file is read as a whole
PIECE = 2**16  # bytes that a reader parses at a time: what it costs to reach one prompt
LONGEST = 2**23  # bytes without a line feed that are held: more is no prompt


class Source:
    """A file that is read in parts: a local path, or a URL (`s3://`, `gs://`, `hf://`, `https://`, ...).

    A remote file is fetched by exactly the ranges that are read. What `.gz`, `.bz2`, `.xz` and `.zip` pack is
    unpacked on the way; going back in a packed file unpacks it from its start.

    Attributes:
        packed: whether it is one of those.
        suffix: of the name, in lower case; of a packed file the one before the last.

    Raises:
        UserError: here and from every method: the file cannot be opened or read.
    """

    def __init__(self, place: str):
        self.place = place
        name = place.split("?")[0] if "://" in place else place
        packing = infer_compression(name)
        self.packed, suffixes = packing is not None, PurePosixPath(name).suffixes
        self.suffix = "".join(suffixes[-2 if packing else -1 :][:1]).lower()
        cache = "readahead" if packing else "none"  # an unpacker asks for a few kilobytes at a time
        with self.explained():
            system, path = url_to_fs(place)
            self.file = system.open(path, "rb", block_size=CHUNK, cache_type=cache, compression=packing)

    def read(self, begin: int, size: int) -> bytes:
        """The bytes [begin, begin + size), fewer at the end of the file."""
        with self.explained():
            self.file.seek(begin)
            return self.file.read(size)

    def begin(self) -> int:
        """The first byte behind a byte order mark."""
        return len(codecs.BOM_UTF8) if self.read(0, len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0

    def pieces(self, begin: int) -> Iterator[bytes]:
        """Everything from `begin` on, in pieces of about `PIECE` bytes that end with a line feed or the file."""
        rest = b""
        while chunk := self.read(begin, CHUNK):
            begin, rest, cut = begin + len(chunk), rest + chunk, 0
            while end := rest.find(b"\n", cut + PIECE) + 1:
                yield rest[cut:end]
                cut = end
            rest = rest[cut:]
            if len(rest) > LONGEST:
                raise self.refuse(f"a line of more than {LONGEST >> 20} MiB ends after byte {begin}; that is no prompt")
        if rest:
            yield rest

    def refuse(self, reason: str) -> UserError:
        """The error that names the file."""
        return UserError(f"prompts {self.place}: {reason}")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever a file system, network or unpacker raises (each has errors of its own) becomes one line."""
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            missing = (getattr(error.__cause__, "name", None) or error.name or "").split(".")[0]
            raise self.refuse(f"{_reason(error)}: pip install {missing}") from error
        except Exception as error:
            reason = _reason(error)
            if "range requests" in reason:
                reason = "the server sends no parts of files; put simplecache:: before the URL to fetch it first"
            else:
                reason += "; name a file or a URL that can be read"
            raise self.refuse(reason) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):  # remote ones hide what happened behind it
        return error.strerror or (_reason(error.__cause__) if error.__cause__ else "No such file")
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
