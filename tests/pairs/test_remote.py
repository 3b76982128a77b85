"""Pairs generated directly into an object store."""

import pytest

from diffgan.__main__ import main
from diffgan.storage.open import open_store
from tests.pair_sets import SHARD, contents
from tests.runs import write


@pytest.mark.parametrize("place", ["s3", "memory"])
def test_a_remote_set_is_the_same_bytes_and_can_be_checked(command, unbroken, request, tmp_path, place, capsys):
    url = request.getfixturevalue("s3") if place == "s3" else f"memory://{tmp_path}/set"
    writer = {"class_path": "callbacks.pair_writer.PairWriter", "init_args": {"folder": url, "shard_size": SHARD}}
    words = [*command(tmp_path / "root"), "-c", write(tmp_path / "r.yaml", {"trainer": {"callbacks": [writer]}})]
    main([*words, "--trainer.limit_predict_batches=4"])
    main(words)
    store, wanted = open_store(url), contents(unbroken)
    assert {name: store.read(name) for name in store.entries()} == wanted
    assert not store.entries("claims") and not store.entries("parts")
    main(words)
    main(["pairs", "status", url])
    main(["pairs", "verify", url, "--sample=3"])
    shown = capsys.readouterr()
    assert "complete, all 44 pairs exist" in shown.err
    assert "44 pairs (100.0%)" in shown.out and "3 pairs in 1 batch made again" in shown.out
    assert shown.out.endswith("all bits are the same\n")
