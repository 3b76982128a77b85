"""The interface of stores, local and remote; copies of remote files; failures of the service."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import s3fs

from diffgan.errors import UserError
from diffgan.storage import retry
from diffgan.storage.cache import Cache
from diffgan.storage.local import LocalStore
from diffgan.storage.open import open_store
from diffgan.storage.remote import RemoteStore


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3") + "/new")
    places = {"folder": tmp_path / "new", "file": f"file://{tmp_path}/new", "memory": f"memory://{tmp_path}/new"}
    return open_store(places[request.param])


def test_written_files_are_read_and_listed(store):
    assert store.entries() == {} and store.read("a") is None and store.local("a") is None
    store.write("a", b"1")
    store.write("a", b"22")
    store.write("claims/b", b"333")
    assert store.read("a") == b"22" == store.local("a").read_bytes()
    assert {name: entry.size for name, entry in store.entries().items()} == {"a": 2}
    assert {name: entry.size for name, entry in store.entries("claims").items()} == {"claims/b": 3}
    assert abs(store.entries()["a"].modified - Path("/proc/self").stat().st_mtime) < 3600


def test_create_succeeds_only_once(store):
    assert store.create("claims/a", b"first")
    assert not store.create("claims/a", b"second")
    assert store.read("claims/a") == b"first"
    store.remove("claims/a")
    store.remove("claims/a")
    assert store.create("claims/a", b"third")
    assert list(store.entries("claims")) == ["claims/a"]


def test_writes_of_other_clients_are_seen(store):
    store.write("a", b"1")
    assert store.local("a").read_bytes() == b"1" and list(store.entries()) == ["a"]
    other = open_store(store.place)
    other.write("a", b"two")
    other.write("b", b"1")
    assert store.local("a").read_bytes() == b"two" == store.read("a")
    assert list(store.entries()) == ["a", "b"]
    other.remove("a")
    assert store.local("a") is None and store.read("a") is None and list(store.entries()) == ["b"]


def test_of_concurrent_creates_one_succeeds(store):
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: store.create("claim", b"%d" % i), range(8)))
    assert sum(won) == 1 and store.read("claim") == b"%d" % won.index(True)


def test_a_file_with_the_name_of_the_folder_is_reported(tmp_path):
    (tmp_path / "new").write_text("")
    with pytest.raises(UserError, match=r"new/a: .*Not a directory|new/a: .*File exists"):
        open_store(tmp_path / "new").write("a", b"1")


# ---- copies ----


def test_a_copy_is_fetched_once_and_again_when_it_is_damaged(gate, s3):
    store, downloads = open_store(s3), lambda: sum(r.startswith("GET") for r in gate.requests)
    store.write("a", b"content")
    copy = store.local("a")
    assert open_store(s3).local("a") == copy and downloads() == 1
    copy.write_bytes(b"conten")
    assert store.local("a").read_bytes() == b"content" and downloads() == 2
    copy.write_bytes(b"CONTENT")
    assert store.forget("a") and store.local("a").read_bytes() == b"content" and downloads() == 3


def test_many_readers_fetch_a_copy_once(gate, s3):
    store = open_store(s3)
    store.write("a", bytes(1000))
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: store.local("a"), range(8)))) == 1
    assert sum(request.startswith("GET") for request in gate.requests) == 1


def test_the_least_recently_used_copies_are_evicted(tmp_path):
    store = RemoteStore(f"memory://{tmp_path}", Cache(tmp_path / "cache", 250))
    for name in "abcd":
        store.write(name, bytes(100))
    a, b = store.local("a"), store.local("b")
    os.utime(a, (1, 2))
    os.utime(b, (1, 1))
    assert store.local("a") == a  # used now
    with open(b, "rb") as mapped:
        store.local("c")
        assert a.exists() and not b.exists() and mapped.read() == bytes(100)
    store.write("large", bytes(1000))
    assert store.local("large").stat().st_size == 1000
    assert [file.name[33:] for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"] == ["large"]


def test_only_copies_are_evicted(tmp_path):
    folder = tmp_path / "cache"
    (folder / "models").mkdir(parents=True)
    other_files = [folder / name for name in ("thesis.tex", "a.partial", ".hidden", f"{'x' * 32}-a", "models/weights")]
    for file in other_files:
        file.write_bytes(bytes(300))
    link = folder / f"{'0' * 32}-link"
    link.symlink_to(other_files[0])
    copies = [folder / f"{'0' * 32}-a", folder / f"{'0' * 32}-b.partial"]
    for file in (*copies, *other_files):
        file.touch()
        os.utime(file, (1, 1))
    store = RemoteStore(f"memory://{tmp_path}", Cache(folder, 250))
    for name in "bcd":
        store.write(name, bytes(100))
        store.local(name)
    assert all(file.read_bytes() == bytes(300) for file in (*other_files, link))
    assert not any(file.exists() for file in copies)
    kept = {file.name[33:] for file in folder.iterdir() if file.suffix != ".lock"}
    assert {"c", "d"} <= kept and "b" not in kept


def test_a_cache_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "cache").write_text("")
    store = RemoteStore(f"memory://{tmp_path}", Cache(tmp_path / "cache", 250))
    store.write("a", b"1")
    with pytest.raises(UserError, match=r"cache: cannot be written: .* set DIFFGAN_CACHE to another folder"):
        store.local("a")


@pytest.mark.parametrize("protocol", ["memory", "s3"])
@pytest.mark.parametrize(
    "target, reason",
    [("/dev/full", "No space left on device"), ("gone/a", "No such file or directory"), ("loop", "Too many levels")],
)
def test_a_disk_error_is_reported_instead_of_the_service(request, tmp_path, protocol, target, reason):
    place = request.getfixturevalue("s3") if protocol == "s3" else f"memory://{tmp_path}"
    store = RemoteStore(place, Cache(tmp_path / "cache", 1e9))
    store.write("a", bytes(100_000))
    copy = store.local("a")
    copy.unlink()
    (tmp_path / "cache" / "loop").symlink_to("loop")
    partial = copy.with_name(f"{copy.name}.partial")
    partial.symlink_to(target)
    with pytest.raises(UserError, match=f"^cache folder {tmp_path}/cache: cannot be written: {reason}.*; free some"):
        store.local("a")
    assert store.local("a").stat().st_size == 100_000


# ---- failures ----


@pytest.fixture
def short_waits(monkeypatch):
    """Wait milliseconds between retries instead of seconds, and let only diffgan retry, not s3fs."""
    monkeypatch.setattr(retry, "WAITS", (0.01,) * 5)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def test_throttled_requests_are_retried(short_waits, gate, s3, capsys):
    store = open_store(s3)
    for method, action in {"PUT": lambda: store.write("a", b"content"), "GET": lambda: store.local("a")}.items():
        gate.method, gate.failures = method, 3
        action()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3 and gate.failures == 0
        assert lines[0].startswith(f"diffgan: {s3}/a: Please reduce your request rate; trying again in 0.0 s (1 of 5)")
    assert store.local("a").read_bytes() == b"content"
    gate.failures = 2
    assert list(store.entries()) == ["a"]


def test_a_service_that_stays_unavailable_is_reported(short_waits, gate, s3):
    store = open_store(s3)
    store.write("a", b"content")
    gate.failures = 100
    with pytest.raises(UserError, match=f"^{s3}/a: Please reduce your request rate; 6 attempts failed; run the same"):
        store.local("a")
    assert gate.failures == 94


def test_a_service_that_cannot_be_reached_is_reported(short_waits, gate, s3):
    store = open_store(s3)
    gate.close()
    for action in (lambda: store.read("a"), lambda: store.write("a", b""), store.entries):
        with pytest.raises(UserError, match=f"^{s3}(/a)?: Could not connect to the endpoint .*6 attempts failed"):
            action()


def test_a_create_whose_response_was_lost_succeeds(short_waits, gate, s3):
    store, passes = open_store(s3), gate.lets_pass

    def lose_the_first_response(method, path):
        if method == "PUT" and not any(request.startswith("PUT") for request in gate.requests):
            fsspec.filesystem("s3", endpoint_url=gate.behind).pipe_file(path.lstrip("/"), b"content")
            passes(method, path)
            return False
        return passes(method, path)

    gate.lets_pass = lose_the_first_response
    assert store.create("a", b"content")
    assert not store.create("a", b"content")


def test_errors_that_the_user_can_fix_name_the_remedy(short_waits, s3, monkeypatch):
    with pytest.raises(UserError, match=r"s3://nowhere/a/b: .*bucket does not exist.*; make the bucket"):
        open_store("s3://nowhere/a").write("b", b"")
    with pytest.raises(UserError, match=r"gs://bucket/a: Please install gcsfs .*: pip install gcsfs"):
        open_store("gs://bucket/a")
    with pytest.raises(UserError, match="s4://bucket/a: Protocol not known: s4; name a path or a URL"):
        open_store("s4://bucket/a")
    with pytest.raises(UserError, match="cache_gb: 0 must be above 0"):
        open_store(s3, cache_gb=0)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=f"{s3}/a: Unable to locate credentials; give credentials with access"):
        open_store(s3).read("a")


def test_paths_open_local_stores(tmp_path):
    assert isinstance(open_store(tmp_path), LocalStore) and isinstance(open_store("relative/path"), LocalStore)
