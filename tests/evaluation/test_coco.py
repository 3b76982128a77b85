"""Evaluation on COCO protocols with a folder of a few images; Inception and CLIP with random weights."""

import json

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from diffgan.cli import coco_captions
from diffgan.errors import UserError
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.features.clip import CLIPSimilarity
from diffgan.evaluation.features.efficientnet import EfficientNetFeatures
from diffgan.evaluation.features.inception import WEIGHTS, InceptionFeatures
from diffgan.evaluation.grain import PLAIN
from diffgan.evaluation.metrics.distances import KernelDistance
from diffgan.evaluation.metrics.statistics import FeatureStatistics, read_statistics
from diffgan.evaluation.preprocessing import read_images, resize_images
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.work_split import WorkSplit
from diffgan.images import to_uint8
from diffgan.noise import draw_noise
from tests.pipelines import random_inception

LATENT, IMAGES = (4, 8, 8), 7
FIELDS = {"name": "tiny", "images": IMAGES, "seed_base": 3_000_000_000, "side": 24}


def paint(noise, prompts, seeds):
    return torch.nn.functional.interpolate(noise[:, :3], size=32, mode="bilinear").clamp(-1, 1)


@pytest.fixture
def files(tmp_path):
    """The images that `paint` generates as real ones; as many captions and one more."""
    images = to_uint8(paint(draw_noise(range(FIELDS["seed_base"], FIELDS["seed_base"] + IMAGES), LATENT), None, None))
    (tmp_path / "real" / "deep").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "real" / "deep" / f"{i}.png")
    (tmp_path / "captions.txt").write_text("\n".join(f"an image of {i} dogs" for i in range(IMAGES + 1)))
    return tmp_path


def protocol(files, **changes):
    given = FIELDS | {"captions": str(files / "captions.txt"), "reference": str(files / "real")} | changes
    (files / "protocol.yaml").write_text(yaml.safe_dump(given))
    return read_protocol(files / "protocol.yaml")


def test_images_have_no_distance_from_themselves(files):
    prompts_seen = []

    def generate(noise, prompts, seeds):
        prompts_seen.extend(prompts)
        return paint(noise, prompts, seeds)

    evaluator = CocoEvaluator(protocol(files), EfficientNetFeatures(), cache=files / "cache", batch_size=3)
    metrics = evaluator.evaluate(generate, LATENT, "cpu")
    assert metrics["fd_efficientnet"] == pytest.approx(0, abs=1e-3) and "fid" not in metrics
    assert metrics["images"] == IMAGES and prompts_seen == evaluator.protocol.prompts and len(prompts_seen) == IMAGES
    assert metrics["protocol"] == "tiny" and metrics["protocol_digest"] == evaluator.protocol.digest
    others = evaluator.evaluate(lambda noise, prompts, seeds: -paint(noise, prompts, seeds), LATENT, "cpu")
    assert others["fd_efficientnet"] > 10
    for file in evaluator.protocol.reference_files:  # the cache is enough: sizes stay, and so does the digest
        file.write_bytes(bytes(file.stat().st_size))
    again = CocoEvaluator(protocol(files), evaluator.extractor, cache=files / "cache")
    assert again.evaluate(paint, LATENT, "cpu")["fd_efficientnet"] == pytest.approx(0, abs=1e-3)


def test_processes_share_the_rows_and_each_counts_once():
    """In the batches of one process; all make equally many, though the last one may be smaller."""
    for count, world, size in ((7, 2, 2), (8, 3, 1), (2, 4, 3), (6, 3, 2), (13, 2, 4), (1, 1, 9)):
        shares = [WorkSplit(rank, world, None).batches(count, size) for rank in range(world)]
        assert len({len(batches) for batches in shares}) == 1
        (alone,) = {tuple(WorkSplit(0, 1, None).batches(count, size))}
        assert {batch for batches in shares for batch in batches} == set(alone)
        rows = [torch.tensor([row for batch in batches for row in batch]) for batches in shares]
        longest = max(map(len, rows))

        def gather(own, rows=rows, longest=longest):
            if own.numel() == 1 and own.ndim == 1 and int(own) == len(rows[0]):
                return torch.tensor([[len(part)] for part in rows])
            return torch.stack([nn.functional.pad(part, (0, longest - len(part))) for part in rows])

        assert WorkSplit(0, world, gather).in_order(rows[0], count, size).tolist() == list(range(count))


def test_statistics_of_other_tools(files):
    features = torch.rand(40, 6, dtype=torch.float64)
    moments = {"mu": features.mean(0).numpy(), "sigma": np.cov(features.numpy(), rowvar=False)}
    np.savez(files / "moments.npz", **moments)
    read, expected = read_statistics(files / "moments.npz"), FeatureStatistics.of(features)
    torch.testing.assert_close(read.mean, expected.mean)
    torch.testing.assert_close(read.root @ read.root.T, expected.root @ expected.root.T)
    assert protocol(files, reference=str(files / "moments.npz")).reference_files == [files / "moments.npz"]
    np.savez(files / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(UserError, match=r"objects\.npz: is no .npz of mu"):
        read_statistics(files / "objects.npz")


def test_digest_covers_captions_reference_and_numbers(files):
    digests = [protocol(files).digest, protocol(files, side=25).digest, protocol(files, images=6).digest]
    (files / "captions.txt").write_text((files / "captions.txt").read_text().replace("3 dogs", "3 cats"))
    digests.append(protocol(files).digest)
    (files / "real" / "deep" / "0.png").rename(files / "real" / "0.png")
    digests.append(protocol(files).digest)
    assert len(set(digests)) == 5
    (files / "captions.txt").open("a").write("\ncaptions past the last image do not count")
    assert protocol(files).digest == digests[-1]


def test_digest_of_a_folder_is_that_of_earlier_versions(files):
    """Names and sizes of the real images, and open_clip's name of the weights: records depend on it."""
    (files / "few" / "deep").mkdir(parents=True)
    (files / "few" / "deep" / "0.png").write_bytes(bytes(10))
    (files / "few" / "1.jpg").write_bytes(bytes(20))
    (files / "captions.txt").write_text("a dog\na cat")
    fixed = {"images": 2, "seed_base": 0, "reference": str(files / "few")}
    assert protocol(files, **fixed).digest == "8de2c40a0e63fc09"
    clip = {"clip_model": "ViT-g-14", "clip_weights": "laion2b_s12b_b42k"}
    assert protocol(files, **fixed, **clip).digest == "f6cab26f83b1077d"


def test_digest_covers_the_content_of_statistics(files):
    """Two files of as many features have the same size."""

    def digest(name, mean):
        np.savez(files / name, mu=np.full(3, mean), sigma=np.eye(3))
        return protocol(files, reference=str(files / name)).digest

    first, other = digest("moments.npz", 0.0), digest("moments.npz", 1.0)
    assert first != other and digest("renamed.npz", 0.0) == first


def test_digest_covers_the_content_of_clip_weights(files):
    """Their key is the same whatever the weights, so that protocols of other weights must differ."""

    def digest(name, content):
        (files / name).write_bytes(content)
        return protocol(files, clip_model="ViT-g-14", clip_weights=str(files / name)).digest

    first, other = digest("clip.pt", b"weights"), digest("clip.pt", b"WEIGHTS")
    assert first != other and digest("renamed.pt", b"weights") == first


def test_images_become_centred_squares(files):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(files / "wide.png")
    square = read_images([files / "wide.png"], 5)
    assert square.shape == (1, 3, 5, 5) and bool((square == 200).all())
    generated = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)
    assert torch.equal(resize_images(generated, 12), generated) and resize_images(generated, 6).shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": IMAGES + 2}, "8 captions, but protocol tiny needs 9"),
        ({"images": "many"}, "images is 'many'"),
        ({"seed_base": 2**32 - 3}, r"leave \[0, 2\^32\)"),
        ({"reference": "nowhere"}, "nowhere: protocol tiny finds no reference"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"reference": 5}, "protocol .*: reference is 5 and must be text"),
        ({"clip_model": "ViT-g-14", "clip_weights": 5}, "clip_weights is 5 and must be text"),
        ({"clip_model": "ViT-g-14"}, "both clip_model and clip_weights"),
        ({"clip_model": "ViT-g-14", "clip_weights": "no such weights"}, "clip_model ViT-g-14, .*cannot be loaded"),
    ],
)
def test_invalid_protocol_is_refused(files, changes, reason):
    with pytest.raises(UserError, match=reason) as error:
        CocoEvaluator(protocol(files, **changes), EfficientNetFeatures())
    assert "\n" not in str(error.value)


def test_file_that_is_no_image_is_named(files):
    (files / "real" / "9.jpg").write_text("no image")
    real = CocoEvaluator(protocol(files), EfficientNetFeatures()).real_images()
    with pytest.raises(UserError, match=r"9\.jpg: cannot be read as an image"):
        real.statistics("reference", PLAIN)


def test_a_damaged_real_image_is_found_after_one_batch(files):
    """Generating all images takes hours; a generator that fails does so before the features of real images."""
    (files / "real" / "9.jpg").write_text("no image")
    generated = []

    def generate(noise, prompts, seeds):
        generated.extend(prompts)
        return paint(noise, prompts, seeds)

    evaluator = CocoEvaluator(protocol(files), EfficientNetFeatures(), batch_size=2)
    with pytest.raises(UserError, match=r"9\.jpg: cannot be read as an image"):
        evaluator.evaluate(generate, LATENT, "cpu")
    assert len(generated) == 2
    with pytest.raises(UserError, match="not finite"):
        evaluator.evaluate(lambda noise, *_: noise[:, :3] * torch.nan, LATENT, "cpu")


def test_statistics_have_no_features(files):
    """A metric that needs the features of every image cannot be computed from mu and sigma."""
    np.savez(files / "moments.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    of_statistics = protocol(files, reference=str(files / "moments.npz"))
    evaluator = CocoEvaluator(of_statistics, EfficientNetFeatures())
    evaluator.metrics.append(KernelDistance("efficientnet"))
    reason = r"moments\.npz: holds statistics, .* name a folder of images"
    with pytest.raises(UserError, match=reason):
        evaluator.evaluate(paint, LATENT)
    for name in ("kid", "precision_recall"):
        listed = protocol(files, reference=str(files / "moments.npz"), metrics=[name])
        with pytest.raises(UserError, match=reason):
            CocoEvaluator(listed, EfficientNetFeatures())


# ---- Inception ----


def test_inception_is_the_librarys(files):
    network = random_inception(files / "random.pth")
    extractor = InceptionFeatures(files / "random.pth")
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)
    assert torch.equal(extractor(images), network(images)[0]) and extractor(images).shape == (2, 2048)
    assert extractor(images[..., :64, :64]).shape == (2, 2048)
    metrics = CocoEvaluator(protocol(files), extractor, batch_size=4).evaluate(paint, LATENT, "cpu")
    assert metrics[f"fd_{extractor.name}"] == pytest.approx(0, abs=1e-3)
    assert "fid" not in metrics  # that name is of the trained network's features


def test_inception_weights_are_not_unpickled(files):
    torch.save({"weights": pytest.approx(1)}, files / "objects.pth")
    (files / "text.pth").write_text("no weights")
    for name in ("objects", "text"):
        with pytest.raises(UserError, match=rf"{name}\.pth: holds no weights") as error:
            InceptionFeatures(files / f"{name}.pth")
        assert "\n" not in str(error.value)


def test_missing_inception_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*fetch https://github.com/toshas.*put it there"):
        InceptionFeatures()
    assert WEIGHTS.path == tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"


# ---- CLIP ----


@pytest.fixture
def tiny_clip(files):
    """A random CLIP of 32x32 images that open_clip knows as "tiny-clip", and the file of its weights."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    (files / "tiny-clip.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(files / "tiny-clip.json")
    network = open_clip.create_model("tiny-clip")
    torch.save(network.state_dict(), files / "tiny-clip.pt")
    return network.eval(), files / "tiny-clip.pt"


def test_clip_score_is_the_cosine(files, tiny_clip):
    network, weights = tiny_clip
    score, prompts = CLIPSimilarity("tiny-clip", str(weights)), ["a dog", "two cats on a mat " * 40]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    preprocess = open_clip.image_transform(32, is_train=False)
    pixels = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.no_grad():
        shown = network.encode_image(pixels)
        told = network.encode_text(open_clip.tokenize([f"A photo depicts {prompt}" for prompt in prompts]))
    expected = (shown * told).sum(1) / (shown.norm(dim=1) * told.norm(dim=1))
    torch.testing.assert_close(score(images, prompts), expected, atol=1e-5, rtol=1e-5)
    with_clip = protocol(files, clip_model="tiny-clip", clip_weights=str(weights), side=32)
    evaluator = CocoEvaluator(with_clip, EfficientNetFeatures(), batch_size=3)
    real = read_images(with_clip.reference_files, 32)
    expected = score(real, with_clip.prompts).mean().item()
    assert evaluator.evaluate(paint, LATENT, "cpu")["clip_score"] == pytest.approx(expected, abs=1e-5)


# ---- captions ----


def test_captions_are_drawn_one_an_image(tmp_path):
    notes = [{"id": 10 * i + k, "image_id": i, "caption": f"{i}\n {k}"} for i in range(9) for k in range(3)]
    (tmp_path / "notes.json").write_text(json.dumps({"annotations": notes}))
    coco_captions.write_captions(tmp_path / "notes.json", 6, tmp_path / "captions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len({line["image_id"] for line in lines}) == 6
    assert all(line["caption"].split()[0] == str(line["image_id"]) for line in lines)
    shuffled = coco_captions.draw_captions(notes[::-1], 6)
    assert [caption._asdict() for caption in shuffled] == lines
    assert {caption.image_id for caption in coco_captions.draw_captions(notes, 9)} == set(range(9))
    with pytest.raises(UserError, match="9 images"):
        coco_captions.draw_captions(notes, 10)
    with pytest.raises(UserError, match=r"captions\.jsonl: is no captions_"):
        coco_captions.write_captions(tmp_path / "captions.jsonl", 1, tmp_path / "other.jsonl")
