import pytest

from diffgan.errors import UserError
from diffgan.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "new")


def test_what_was_written_is_read_and_listed(store):
    assert store.entries() == {} and store.read("a") is None and store.local("a") is None
    store.write("a", b"1")
    store.write("a", b"22")
    store.write("claims/b", b"333")
    assert store.read("a") == b"22" == store.local("a").read_bytes()
    assert {name: entry.size for name, entry in store.entries().items()} == {"a": 2}
    assert {name: entry.size for name, entry in store.entries("claims").items()} == {"claims/b": 3}


def test_only_the_first_creates(store):
    assert store.create("claims/a", b"first")
    assert not store.create("claims/a", b"second")
    assert store.read("claims/a") == b"first"
    store.remove("claims/a")
    store.remove("claims/a")
    assert store.create("claims/a", b"third")
    assert list(store.entries("claims")) == ["claims/a"]


def test_a_file_in_the_folder_s_place_is_named(tmp_path):
    (tmp_path / "new").write_text("")
    with pytest.raises(UserError, match=r"new/a: .*Not a directory|new/a: .*File exists"):
        open_store(tmp_path / "new").write("a", b"1")
