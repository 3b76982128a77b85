"""What every store does, and what remote ones do when things go wrong."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import s3fs

from diffgan.errors import UserError
from diffgan.storage import retry as patience
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


def test_what_was_written_is_read_and_listed(store):
    assert store.entries() == {} and store.read("a") is None and store.local("a") is None
    store.write("a", b"1")
    store.write("a", b"22")
    store.write("claims/b", b"333")
    assert store.read("a") == b"22" == store.local("a").read_bytes()
    assert {name: entry.size for name, entry in store.entries().items()} == {"a": 2}
    assert {name: entry.size for name, entry in store.entries("claims").items()} == {"claims/b": 3}
    assert abs(store.entries()["a"].modified - Path("/proc/self").stat().st_mtime) < 3600


def test_only_the_first_creates(store):
    assert store.create("claims/a", b"first")
    assert not store.create("claims/a", b"second")
    assert store.read("claims/a") == b"first"
    store.remove("claims/a")
    store.remove("claims/a")
    assert store.create("claims/a", b"third")
    assert list(store.entries("claims")) == ["claims/a"]


def test_what_others_write_is_seen(store):
    store.write("a", b"1")
    assert store.local("a").read_bytes() == b"1" and list(store.entries()) == ["a"]
    other = open_store(store.place)
    other.write("a", b"two")
    other.write("b", b"1")
    assert store.local("a").read_bytes() == b"two" == store.read("a")
    assert list(store.entries()) == ["a", "b"]
    other.remove("a")
    assert store.local("a") is None and store.read("a") is None and list(store.entries()) == ["b"]


def test_of_many_creators_one_succeeds(store):
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: store.create("claim", b"%d" % i), range(8)))
    assert sum(won) == 1 and store.read("claim") == b"%d" % won.index(True)


def test_a_file_in_the_folder_s_place_is_named(tmp_path):
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


def test_the_least_recently_used_copies_make_room(tmp_path):
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


def test_only_copies_make_room(tmp_path):
    folder = tmp_path / "cache"
    (folder / "models").mkdir(parents=True)
    mine = [folder / name for name in ("thesis.tex", "a.partial", ".hidden", f"{'x' * 32}-a", "models/weights")]
    for file in mine:
        file.write_bytes(bytes(300))
    link = folder / f"{'0' * 32}-link"
    link.symlink_to(mine[0])
    copies = [folder / f"{'0' * 32}-a", folder / f"{'0' * 32}-b.partial"]
    for file in (*copies, *mine):
        file.touch()
        os.utime(file, (1, 1))
    store = RemoteStore(f"memory://{tmp_path}", Cache(folder, 250))
    for name in "bcd":
        store.write(name, bytes(100))
        store.local(name)
    assert all(file.read_bytes() == bytes(300) for file in (*mine, link)) and not any(file.exists() for file in copies)
    kept = {file.name[33:] for file in folder.iterdir() if file.suffix != ".lock"}
    assert {"c", "d"} <= kept and "b" not in kept


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
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
def test_a_disk_that_takes_no_copy_is_named_instead_of_the_service(request, tmp_path, protocol, target, reason):
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
def hasty(monkeypatch):
    """Wait milliseconds where seconds are the rule, and leave the retrying to us."""
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 5)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def test_throttled_requests_are_made_again(hasty, gate, s3, capsys):
    store = open_store(s3)
    for method, action in {"PUT": lambda: store.write("a", b"content"), "GET": lambda: store.local("a")}.items():
        gate.method, gate.failures = method, 3
        action()
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 3 and gate.failures == 0
        assert told[0].startswith(f"diffgan: {s3}/a: Please reduce your request rate; trying again in 0.0 s (1 of 5)")
    assert store.local("a").read_bytes() == b"content"
    gate.failures = 2
    assert list(store.entries()) == ["a"]


def test_a_service_that_stays_in_trouble_is_named(hasty, gate, s3):
    store = open_store(s3)
    store.write("a", b"content")
    gate.failures = 100
    with pytest.raises(UserError, match=f"^{s3}/a: Please reduce your request rate; 6 attempts failed; run the same"):
        store.local("a")
    assert gate.failures == 94


def test_a_vanished_service_is_named(hasty, gate, s3):
    store = open_store(s3)
    gate.close()
    for action in (lambda: store.read("a"), lambda: store.write("a", b""), store.entries):
        with pytest.raises(UserError, match=f"^{s3}(/a)?: Could not connect to the endpoint .*6 attempts failed"):
            action()


def test_a_creation_whose_answer_got_lost_counts(hasty, gate, s3):
    store, passes = open_store(s3), gate.lets_pass

    def lose_the_first_answer(method, path):
        if method == "PUT" and not any(request.startswith("PUT") for request in gate.requests):
            fsspec.filesystem("s3", endpoint_url=gate.behind).pipe_file(path.lstrip("/"), b"mine")
            passes(method, path)
            return False
        return passes(method, path)

    gate.lets_pass = lose_the_first_answer
    assert store.create("a", b"mine")
    assert not store.create("a", b"mine")


def test_what_the_user_can_mend_is_told(hasty, s3, monkeypatch):
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
    with pytest.raises(UserError, match=f"{s3}/a: Unable to locate credentials; give credentials that may"):
        open_store(s3).read("a")


def test_paths_are_folders(tmp_path):
    assert isinstance(open_store(tmp_path), LocalStore) and isinstance(open_store("relative/path"), LocalStore)
