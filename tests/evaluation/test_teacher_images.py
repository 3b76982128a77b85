"""A student against its teacher's images of the same noises: the metrics, the folder, and what is refused."""

import json

import pytest
import torch
import yaml
from PIL import Image

from diffgan.errors import UserError
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.grain import GRAIN, PATCH, PLAIN
from diffgan.evaluation.metrics.distances import frechet_distance
from diffgan.evaluation.metrics.statistics import FeatureStatistics
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.glyphs import GlyphProtocol
from diffgan.images import from_uint8, to_uint8
from diffgan.noise import draw_noise
from tests.teacher_images import write_teacher_images

LATENT = (4, 8, 8)
GLYPHS = GlyphProtocol("tiny", images=12, diversity_prompts=2, images_per_prompt=2)


class Averages(torch.nn.Module):
    """A cheap extractor: the image at 4x4, in levels of 255."""

    name, identity = "averages", "averages 4"

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


def paint(noise, prompts, *_, side=64):
    return torch.nn.functional.interpolate(noise[:, :3], size=side, mode="bilinear").clamp(-1, 1)


def darker(noise, prompts, *_):
    """The images of `paint`, ten levels darker where they can be."""
    return from_uint8(to_uint8(paint(noise, prompts)).int() - 10)


def images_of(protocol, **options):
    return to_uint8(paint(draw_noise(list(protocol.seeds), LATENT), None, **options))


@pytest.fixture
def teacher(tmp_path):
    return write_teacher_images(tmp_path / "teacher", GLYPHS.name, GLYPHS.digest, images_of(GLYPHS))


def test_equal_images_have_no_distance_to_the_teacher(teacher, tmp_path):
    evaluator = GlyphEvaluator(GLYPHS, Averages(), cache=tmp_path / "cache", teacher_images=teacher)
    metrics = evaluator.evaluate(paint, LATENT)
    for name in ("fd_t_averages", "distance_n_averages", "fd_t_averages_grain", "distance_n_averages_grain"):
        assert metrics[name] == pytest.approx(0, abs=1e-6)
    assert metrics["fd_averages"] > 1  # the real images are others
    assert len(list((tmp_path / "cache").glob("teacher-tiny-*.safetensors"))) == 2
    without = GlyphEvaluator(GLYPHS, Averages(), cache=tmp_path / "cache").evaluate(paint, LATENT)
    assert {name for name in metrics if "_t_" in name or "distance_n" in name}.isdisjoint(without)
    del metrics["seconds_per_image"], without["seconds_per_image"]
    assert without == {name: metrics[name] for name in without}  # the other metrics stay as they are


def test_metrics_say_what_made_the_teachers_images(teacher):
    """As far as the folder knows."""
    pipeline, config = {"name": "glyphs", "digest": "f" * 32}, {"steps": 50, "guidance": 3.0}
    for known in ({}, {"pipeline": pipeline, "config": config}):
        record = json.loads((teacher / "images.json").read_text())
        (teacher / "images.json").write_text(json.dumps(record | known))
        metrics = GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher).evaluate(paint, LATENT)
        assert metrics["teacher_images"] == known
    assert "teacher_images" not in GlyphEvaluator(GLYPHS, Averages()).evaluate(paint, LATENT)


def test_distances_to_the_teacher(teacher):
    """As many levels away as the student's images are, and the Fréchet distance of both sets' features."""
    evaluator = GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher, batch_size=5)
    metrics = evaluator.evaluate(darker, LATENT)
    matched = slice(GLYPHS.images)
    of_teacher = Averages()(images_of(GLYPHS)[matched])
    of_student = Averages()(to_uint8(darker(draw_noise(list(GLYPHS.seeds)[matched], LATENT), None)))
    assert metrics["distance_n_averages"] == pytest.approx((of_teacher - of_student).norm(dim=1).mean().item())
    expected = frechet_distance(FeatureStatistics.of(of_student), FeatureStatistics.of(of_teacher))
    assert metrics["fd_t_averages"] == pytest.approx(expected)
    assert metrics["distance_n_averages_grain"] == pytest.approx(metrics["distance_n_averages"], rel=0.2)


def test_features_of_the_teacher_are_kept(teacher, tmp_path):
    first = GlyphEvaluator(GLYPHS, Averages(), cache=tmp_path / "cache", teacher_images=teacher).real_images()
    features = {view: first.features("teacher", view) for view in (PLAIN, GRAIN)}
    files = set((tmp_path / "cache").iterdir())
    again = GlyphEvaluator(GLYPHS, Averages(), cache=tmp_path / "cache", teacher_images=teacher).real_images()
    assert all(torch.equal(again.features("teacher", view), features[view]) for view in features)
    assert set((tmp_path / "cache").iterdir()) == files
    Image.new("RGB", (64, 64)).save(teacher / "00000.png")  # other images have other features
    changed = GlyphEvaluator(GLYPHS, Averages(), cache=tmp_path / "cache", teacher_images=teacher).real_images()
    assert changed.features("teacher", PLAIN)[0].tolist() == [0] * 48


# ---- photographs ----


def photographs(folder, **changes):
    """A protocol that compares with the teacher only and needs no real images."""
    (folder / "captions.txt").write_text("\n".join(f"{i} dogs" for i in range(6)))
    fields = {"name": "pair", "captions": str(folder / "captions.txt"), "images": 6, "seed_base": 0, "side": 32}
    fields |= {"metrics": ["fid_t", "distance_n", "diversity"], "diversity_prompts": 2, "images_per_prompt": 3}
    (folder / "pair.yaml").write_text(yaml.safe_dump(fields | changes))
    return read_protocol(folder / "pair.yaml")


def test_photographs_need_no_real_images(tmp_path, capsys):
    protocol = photographs(tmp_path)
    assert len(protocol.prompts) == len(protocol.seeds) == 12
    assert protocol.prompts[6:] == ["0 dogs"] * 3 + ["1 dogs"] * 3
    folder = write_teacher_images(tmp_path / "teacher", "pair", protocol.digest, images_of(protocol))
    metrics = CocoEvaluator(protocol, Averages(), teacher_images=folder).evaluate(paint, LATENT)
    assert metrics["fd_t_averages"] == pytest.approx(0, abs=1e-6) and metrics["distance_n_averages"] == 0
    assert capsys.readouterr().err == ""
    alone = CocoEvaluator(protocol, Averages()).evaluate(paint, LATENT)
    assert alone["diversity_averages"] == metrics["diversity_averages"] > 1
    assert capsys.readouterr().err == (
        "diffgan: protocol pair: fid_t, distance_n not computed without teacher_images, a folder of the teacher's "
        "images\n"
    )


def test_diversity_is_of_the_images_of_one_prompt(tmp_path):
    protocol = photographs(tmp_path, side=64)
    measured = CocoEvaluator(protocol, Averages()).evaluate(paint, LATENT)["diversity_averages"]
    features = Averages()(images_of(protocol)[6:]).double().view(2, 3, -1)
    pairs = [(a - b).norm() for own in features for i, a in enumerate(own) for b in own[i + 1 :]]
    assert measured == pytest.approx(torch.stack(pairs).mean().item())


def test_patches_are_of_the_images_in_full_size(tmp_path):
    """The centred 299 pixels, not resized: what lies outside does not matter, and not the protocol's side."""
    protocol = photographs(tmp_path, metrics=["fid_t_patch"], diversity_prompts=0, images_per_prompt=0)
    images = images_of(protocol, side=320)
    patches = images[..., 10:309, 10:309]
    framed = torch.zeros_like(images)
    framed[..., 10:309, 10:309] = patches
    folder = write_teacher_images(tmp_path / "teacher", "pair", protocol.digest, framed)
    evaluator = CocoEvaluator(protocol, Averages(), teacher_images=folder)
    metrics = evaluator.evaluate(lambda noise, prompts, *_: paint(noise, prompts, side=320), LATENT)
    assert metrics["fd_t_averages_patch"] == pytest.approx(0, abs=1e-6)
    features = evaluator.real_images().features("teacher", PATCH)
    assert torch.allclose(features, Averages()(patches))
    with pytest.raises(UserError, match="patch of 299 pixels cannot be cut out of images of 64x64"):
        evaluator.evaluate(paint, LATENT)


def test_known_names_are_of_known_features_only(tmp_path):
    names = ["fid_t", "fid_t_patch", "dreamsim_n", "distance_n", "diversity", "dreamdiv"]
    protocol = photographs(tmp_path, metrics=names)
    keys = [metric.name for metric in protocol.teacher_metrics("inception") + protocol.metrics("inception")]
    assert keys == ["fid_t", "fid_t_patch", "dreamsim_n", "distance_n_inception", "diversity_inception", "dreamdiv"]
    keys = [metric.name for metric in protocol.teacher_metrics("inception_12345678")]
    assert keys[:2] == ["fd_t_inception_12345678", "fd_t_inception_12345678_patch"]


# ---- what is refused ----


def test_images_of_another_protocol_are_refused(teacher):
    record = json.loads((teacher / "images.json").read_text())
    (teacher / "images.json").write_text(json.dumps(record | {"protocol": "huge", "protocol_digest": "f" * 16}))
    reason = rf"holds images of protocol huge \(f{{16}}\), not of tiny \({GLYPHS.digest}\); write it with .*save_images"
    with pytest.raises(UserError, match=reason):
        GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher)


def test_a_folder_that_is_not_complete_is_refused(teacher):
    (teacher / "00003.png").unlink()
    (teacher / "00011.png").unlink()
    with pytest.raises(UserError, match=r"2 of the 16 images of protocol tiny are missing, the first is 00003\.png"):
        GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher)
    for content in ("[]", "no JSON"):
        (teacher / "images.json").write_text(content)
        with pytest.raises(UserError, match=r"holds no readable images\.json"):
            GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher)
    (teacher / "images.json").unlink()
    with pytest.raises(UserError, match=r"holds no readable images\.json"):
        GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher)


def test_images_that_cannot_be_read_are_named(teacher):
    (teacher / "00004.png").write_bytes((teacher / "00004.png").read_bytes()[:300])
    with pytest.raises(UserError, match=r"00004\.png: cannot be read as an image"):
        GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher).evaluate(paint, LATENT)
    Image.new("RGB", (32, 64)).save(teacher / "00004.png")
    with pytest.raises(UserError, match=r"00004\.png: is of another size than 00000\.png"):
        GlyphEvaluator(GLYPHS, Averages(), teacher_images=teacher).evaluate(paint, LATENT)


def test_unknown_metrics_and_missing_rows_are_refused(tmp_path):
    for changes, reason in (
        ({"metrics": ["fidelity"]}, "metric 'fidelity' is none of fid, clip_score, kid, "),
        ({"metrics": ["fid"]}, "metric fid needs reference"),
        ({"metrics": ["clip_score"]}, "metric clip_score needs clip_model"),
        ({"diversity_prompts": 0, "images_per_prompt": 0}, "metric diversity needs diversity_prompts"),
        ({"diversity_prompts": 7}, "diversity_prompts is 7 and must be a whole number from 0 to 6"),
        ({"images_per_prompt": 1}, "images_per_prompt is 1 and must be a whole number from 2 to"),
    ):
        with pytest.raises(UserError, match=reason):
            photographs(tmp_path, **changes)


def test_efficientnet_is_the_miniatures_extractor(teacher):
    """Distances to the teacher by the trained features of the glyph protocols."""
    evaluator = GlyphEvaluator(GLYPHS, EfficientNetFeatures(), teacher_images=teacher)
    metrics = evaluator.evaluate(paint, LATENT)
    assert metrics["fd_t_efficientnet"] == pytest.approx(0, abs=1e-4) and metrics["distance_n_efficientnet"] < 1e-4
    assert evaluator.evaluate(darker, LATENT)["distance_n_efficientnet"] > 1
