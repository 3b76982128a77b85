"""What owners of pairs and runs of an embedded teacher of an earlier version read when another one has replaced it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.methods.checks import check_pairs
from diffgan.pairs.opening import require_teacher
from diffgan.pairs.pair_set import PairSet
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.earlier import EARLIER, remedy_for
from diffgan.teachers.registry import load_teacher
from tests.runs import refused, write

(OLD,) = EARLIER
ADVICE = "it was the glyph teacher of version 0.3: move the folders of its pairs and runs away and make both again"


def test_the_embedded_teacher_has_replaced_that_of_version_03():
    assert EARLIER[OLD] == "0.3" and weights_digest(load_teacher("glyphs")) != OLD
    assert remedy_for("00", "otherwise") == "otherwise"


def test_pairs_of_an_earlier_teacher_are_refused_with_advice(pairs, tiny_pipeline):
    manifest = replace(PairSet(pairs).manifest, teacher="glyphs", teacher_digest=OLD)
    used_by_fit = SimpleNamespace(folder="pairs/demo", pairs=SimpleNamespace(manifest=manifest))
    present = load_teacher(str(tiny_pipeline))
    for refuses in (
        lambda: check_pairs(used_by_fit, "glyphs", weights_digest(present)),
        lambda: require_teacher(manifest, present, "glyphs"),  # pairs verify, pairs embed
        lambda: PairSet(pairs).manifest.require_same(manifest.identity(), "pairs/demo"),  # predict
    ):
        with pytest.raises(UserError, match=r"glyphs|pairs/demo") as refusal:
            refuses()
        assert ADVICE in str(refusal.value)


def test_other_pairs_are_refused_as_before(pairs):
    manifest = replace(PairSet(pairs).manifest, teacher_digest="11")
    with pytest.raises(UserError, match="choose another folder"):
        PairSet(pairs).manifest.require_same(manifest.identity(), "pairs/demo")
    with pytest.raises(UserError, match="use that teacher, or make new pairs"):
        check_pairs(SimpleNamespace(folder="pairs", pairs=SimpleNamespace(manifest=manifest)), "glyphs", "00")


def test_runs_of_an_earlier_teacher_are_refused_with_advice(config, tmp_path, capsys):
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["teacher_digest"] = OLD
    name = next(n for n in checkpoint["state_dict"] if n.endswith("conv_in.weight"))
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:4]  # a network of other widths
    for state in checkpoint["optimizer_states"]:
        moments = state["state"].get(name, {})
        moments.update({key: value[:4] for key, value in moments.items() if value.ndim})
    torch.save(checkpoint, path)
    longer = ["--model.init_args.images", "64"]
    assert ADVICE in refused(capsys, "fit", "-c", tmp_path / "fit.yaml", *longer)
    assert ADVICE in refused(capsys, "export", tmp_path / "run", tmp_path / "student")
    del checkpoint["teacher_digest"]  # as in checkpoints of the teacher's own stages
    torch.save(checkpoint, path)
    assert "another model" in refused(capsys, "fit", "-c", tmp_path / "fit.yaml", *longer)
