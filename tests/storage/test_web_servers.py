"""Pair sets behind web servers: with an index page, with and without sizes, and servers that lie."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.pairs.pair_set import PairSet
from diffgan.storage import retry, web_pages
from diffgan.storage.cache import Cache
from diffgan.storage.remote import RemoteStore
from tests.pair_sets import refusal


class Plain(SimpleHTTPRequestHandler):
    """Python's own server of a folder."""

    omitted: tuple[str, ...] = ()

    def log_message(self, *_):
        """Say nothing."""

    def send_header(self, keyword, value):
        if keyword not in self.omitted:
            super().send_header(keyword, value)


class WithoutSizes(Plain):
    omitted = ("Content-Length",)


class WithoutAnything(Plain):
    omitted = ("Content-Length", "Last-Modified")


class WithoutIndex(Plain):
    def list_directory(self, path):
        self.send_error(404)


class Endless(Plain):
    """Every file, and the index page, goes on for ever."""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Last-Modified", "Fri, 01 May 2026 00:00:00 GMT")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        try:
            while True:
                self.wfile.write(b'<a href="pairs-00000-of-00001.safetensors">x</a>' * 1000)
        except OSError:
            return


class Lying(Plain):
    """Says that files are a million times as large as they are."""

    def send_header(self, keyword, value):
        super().send_header(keyword, str(int(value) * 10**6) if keyword == "Content-Length" else value)


@pytest.fixture
def serve():
    """serve(handler, folder): URL of a server of a folder."""
    servers = []

    def start(handler, folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "WAITS", (0.01,))


@pytest.mark.parametrize("handler", [Plain, WithoutSizes])
def test_a_set_behind_an_index_page_is_read(handler, serve, unbroken, capsys):
    url = f"{serve(handler, unbroken.parent)}/{unbroken.name}"
    numbers = [0, 43, 17]
    local, remote = PairSet(unbroken).read(numbers), PairSet(url).read(numbers)
    assert remote.prompt == local.prompt and torch.equal(remote.latent, local.latent)
    main(["pairs", "status", url])
    assert "44 pairs (100.0%): 6 shards" in capsys.readouterr().out
    main(["pairs", "verify", url, "--sample", "0"])
    assert "headers, seeds, prompts, values, digests are right" in capsys.readouterr().out


def test_files_without_size_and_version_are_refused(serve, unbroken):
    with pytest.raises(UserError, match="the server states neither size nor version of this file; copy the folder"):
        PairSet(serve(WithoutAnything, unbroken)).read([0])


def test_without_an_index_page_shards_are_missing(serve, unbroken, capsys):
    assert "shard is missing" in refusal(capsys, ["pairs", "verify", serve(WithoutIndex, unbroken)])


def test_a_folder_that_is_not_there_has_no_set(serve, unbroken, capsys):
    assert "no pair set" in refusal(capsys, ["pairs", "status", f"{serve(Plain, unbroken)}/elsewhere"])


def test_a_set_cannot_be_made_on_a_web_server(serve, command, tmp_path, capsys):
    url = serve(Plain, tmp_path)
    option = f"--trainer.callbacks.pairs.init_args.folder={url}/set"
    assert f"{url}/set/manifest.json: " in refusal(capsys, [*command(tmp_path / "set"), option])


def test_endless_files_and_pages_are_not_read_to_the_end(serve, tmp_path, monkeypatch):
    url = serve(Endless, tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json: has more than the 1048576 bytes"):
        PairSet(url)
    monkeypatch.setattr(web_pages, "PAGE_BYTES", 10**5)
    store = RemoteStore(url, Cache(tmp_path / "cache", 10**6))
    with pytest.raises(UserError, match="has more than the 100000 bytes"):
        store.entries()
    with pytest.raises(UserError, match="the server sends more than 1000000 bytes"):
        store.local("pairs-00000-of-00001.safetensors")
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]


def test_a_size_that_is_not_true_evicts_nothing(serve, tmp_path):
    (tmp_path / "files").mkdir()
    for name in "ab":
        (tmp_path / "files" / name).write_bytes(bytes(100))
    cache = Cache(tmp_path / "cache", 1000)
    kept = RemoteStore(serve(Plain, tmp_path / "files"), cache).local("a")
    with pytest.raises(UserError, match="b: "):
        RemoteStore(serve(Lying, tmp_path / "files"), cache).local("b")
    assert kept.is_file()


def test_links_of_index_pages(serve, tmp_path):
    (tmp_path / "a file.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    url = serve(Plain, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text(
        f'<A class="x" HREF="one.safetensors">1</A><a href="{url}/other/two%20.json">2</a><a href="/other/three">3</a>'
        '<a href="../">up</a> <a href="http://elsewhere.invalid/four">4</a><a href="?C=N">sort</a><a href="deep/five">'
    )
    assert list(RemoteStore(url, Cache(tmp_path, 1)).entries()) == ["a file.txt"]
    assert list(RemoteStore(f"{url}/other", Cache(tmp_path, 1)).entries()) == ["one.safetensors", "three", "two .json"]
