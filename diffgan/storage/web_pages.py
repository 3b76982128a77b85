"""Folders behind http(s): the links of an index page, and files read up to a bound, whatever the server sends."""

import re
from html import unescape
from urllib.parse import unquote, urljoin

from fsspec import AbstractFileSystem

from diffgan.errors import UserError

LINK = re.compile(rb"""<a\s[^>]*?href\s*=\s*["']([^"'?#]+)""", re.IGNORECASE)
PAGE_BYTES = 16 << 20  # of an index page: the links of a hundred thousand files


def is_web(fs: AbstractFileSystem) -> bool:
    """Whether a file system of fsspec is that of web pages."""
    return "https" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def linked_names(fs: AbstractFileSystem, url: str) -> list[str]:
    """Names of the files that the index page of a folder links to.

    Args:
        fs: the file system of web pages.
        url: of the folder, without a slash at its end.

    Raises:
        FileNotFoundError: there is no such page.
        UserError: the page is longer than `PAGE_BYTES`.
    """
    base, names = f"{url}/", []
    for link in LINK.findall(read_bounded(fs, base, PAGE_BYTES)):
        target = urljoin(base, unescape(link.decode(errors="replace")))
        name = unquote(target.removeprefix(base))
        if target.startswith(base) and name and "/" not in name:
            names.append(name)
    return names


def read_bounded(fs: AbstractFileSystem, url: str, max_bytes: int) -> bytes:
    """The content of a web page.

    Raises:
        FileNotFoundError: there is no such page.
        UserError: it is longer than `max_bytes`, of which no more are read.
    """
    blocks, size = [], 0
    with fs.open(url, "rb", block_size=0) as stream:  # as it comes, without requests for ranges
        while block := stream.read(min(1 << 20, max_bytes + 1 - size)):
            blocks.append(block)
            size += len(block)
            if size > max_bytes:
                raise UserError(f"{url}: has more than the {max_bytes} bytes that are read of such a file")
    return b"".join(blocks)
