"""Wrong options of the verbs that are functions, and places that cannot be written: one line, nothing is written."""

import errno
import os

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from diffgan.__main__ import main
from diffgan.cli.sample import sample
from tests.runs import refused, write

SAMPLE = ("sample", "digit 7", "--student", "{pipeline}", "--output", "{out}/new")
EVALUATE = ("evaluate", "{pipeline}", "{out}/new.json")
RECONSTRUCT = ("reconstruct", "{out}/new")
BAD = {
    "no student": (("sample", "digit 7", "--output", "{out}/new"), "--student: name the student's directory"),
    "a long prompt": (("sample", "a" * 10_001, *SAMPLE[2:]), "has 10001 characters; a prompt may have 10000 at most"),
    "too many images": ((*SAMPLE, "--count", str(10**11)), "100000000000 must be at most 1000"),
    "no images": ((*SAMPLE, "--count", "0"), "--count: 0 must be at least 1"),
    "a negative seed": ((*SAMPLE, "--seed", "-1"), "--seed: -1: is no seed in [0, 2^32)"),
    "the seeds after the last": ((*SAMPLE, "--seed", str(2**32 - 1), "--count", "2"), "of 2 images from it on are not"),
    "no steps": ((*SAMPLE, "--steps", "0"), "--steps: 0 must be at least 1"),
    "too many steps": ((*SAMPLE, "--steps", "1001"), "steps: 1001 is not between 1 and the teacher's 1000"),
    "negative guidance": ((*SAMPLE, "--guidance", "-2"), "--guidance: -2.0 must be at least 0"),
    "guidance NaN": ((*SAMPLE, "--guidance", ".nan"), "--guidance: nan must be at least 0 and finite"),
    "an unknown device": ((*SAMPLE, "--device", "abacus"), "--device: 'abacus' cannot be used here"),
    "no such device": ((*SAMPLE, "--device", "cuda:77"), "--device: 'cuda:77' cannot be used here"),
    "a device without memory": ((*SAMPLE, "--device", "meta"), "--device: 'meta' cannot be used here"),
    "images in a file": ((*SAMPLE[:-1], "{file}"), "{file}: cannot be written"),
    "images below a file": ((*SAMPLE[:-1], "{file}/new"), "{file}/new: cannot be written"),
    "images where the system refuses": ((*SAMPLE[:-1], "/proc/new"), "/proc/new: cannot be written"),
    "evaluate, device": ((*EVALUATE, "--device", "abacus"), "--device: 'abacus' cannot be used here"),
    "evaluate, no device": ((*EVALUATE, "--device", "mps"), "--device: 'mps' cannot be used here"),
    "evaluate, batch": ((*EVALUATE, "--batch_size", str(10**9)), "--batch_size: 1000000000 must be at least 1 and at"),
    "evaluate, steps": ((*EVALUATE, "--steps", "-1"), "--steps: -1 must be at least 1"),
    "evaluate, guidance": ((*EVALUATE, "--guidance", ".nan"), "--guidance: nan must be at least 0"),
    "evaluate, processes": ((*EVALUATE, "--devices", str(10**6)), "--devices: 1000000 must be at least 1 and at most"),
    "evaluate, output": ((*EVALUATE[:-1], "{out}"), "{out}: is a folder; name a file"),
    "evaluate, unwritable": ((*EVALUATE[:-1], "/proc/new.json"), "/proc/new.json: cannot be written"),
    "evaluate, cache": ((*EVALUATE, "--cache", "{file}"), "{file}: cannot be written"),
    "evaluate, images": ((*EVALUATE, "--save_images", "{file}"), "{file}: cannot be written"),
    "reconstruct, device": ((*RECONSTRUCT, "--device", "abacus"), "--device: 'abacus' cannot be used here"),
    "reconstruct, count": ((*RECONSTRUCT, "--count", "0"), "--count: 0 must be at least 1"),
    "reconstruct, steps": ((*RECONSTRUCT, "--steps", "0"), "--steps: 0 must be at least 1"),
    "reconstruct, rate": ((*RECONSTRUCT, "--learning_rate", ".inf"), "--learning_rate: inf must be above 0 and finite"),
    "reconstruct, seed": ((*RECONSTRUCT, "--seed", "-1"), "--seed: -1: is no seed"),
    "reconstruct, output": ((*RECONSTRUCT[:-1], "{file}"), "{file}: cannot be written"),
    "plot, suffix": (("plot", "{run}", "{out}/new.txt"), "{out}/new.txt: must end with .png"),
    "plot, folder": (("plot", "{run}", "{out}"), "{out}: is a folder; name a file"),
    "plot, unwritable": (("plot", "{run}", "/proc/new.png"), "/proc/new.png: cannot be written"),
    "captions, count": (("coco-captions", "{file}", "0", "{out}/new"), "coco-captions: count: 0 must be at least 1"),
    "captions, output": (("coco-captions", "{file}", "1", "{out}"), "{out}: is a folder"),
    "convert, output": (("convert", "{file}", "/proc/new.safetensors", "sd15"), "/proc/new.safetensors: cannot be"),
    "sweep, device": (("sweep", "configs/tables/bapps.yaml", "--plan", "--device", "abacus"), "--device: 'abacus'"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a curve."""
    folder = tmp_path_factory.mktemp("run")
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("g/regression", 1.0, 8)
    return folder


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_wrong_options_are_one_line(words, message, run, tiny_pipeline, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "file"
    out.mkdir()
    file.write_text("of before")
    places = {"pipeline": tiny_pipeline, "out": out, "file": file, "run": run}
    capsys.readouterr()
    error = refused(capsys, *(word.format(**places) for word in words))
    (line,) = error.splitlines()
    assert line.startswith("diffgan: error: ") and message.format(**places) in line
    assert not list(out.iterdir()) and file.read_text() == "of before"


def test_prompts_at_the_bound_are_taken(tiny_pipeline, tmp_path):
    assert [path.name for path in sample(["a " * 5000], str(tiny_pipeline), tmp_path)] == [f"000-{'a-' * 30}.png"]


def test_images_of_several_batches_are_those_of_their_seeds(tiny_pipeline, tmp_path):
    together = sample(["digit 7"], str(tiny_pipeline), tmp_path / "together", count=18, seed=3)
    (last,) = sample(["digit 7"], str(tiny_pipeline), tmp_path / "alone", seed=20)
    images = [np.asarray(Image.open(path)).astype(int) for path in (together[-1], last)]
    assert len(together) == 18 and np.abs(images[0] - images[1]).max() <= 1  # another batch size rounds otherwise


# ---- a full disk ----


WRITING = {
    "sample": SAMPLE,
    "plot": ("plot", "{run}", "{out}/new.png"),
    "plot of a metric": ("plot", "{run}", "{out}/new.png", "--metric", "g/regression"),
    "reconstruct": (*RECONSTRUCT, "--count", "1", "--steps", "1"),
}


@pytest.mark.parametrize("words", WRITING.values(), ids=WRITING)
def test_full_disk_is_one_line(words, run, tiny_pipeline, tmp_path, capsys, monkeypatch):
    places = {"pipeline": tiny_pipeline, "out": tmp_path, "run": run}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    lines = refused(capsys, *(word.format(**places) for word in words)).splitlines()
    assert "cannot be written: No space left on device" in lines[-1] and str(tmp_path / "new") in lines[-1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_run_on_a_disk_that_may_not_be_written_is_one_line(config, small_disk, tmp_path, capsys):
    folder = small_disk("size=64m")
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    config["model"]["init_args"]["images"] = 8
    file = write(tmp_path / "fit.yaml", config)
    main(["fit", "-c", file])
    small_disk("ro")
    for verb in ("fit", "test"):
        capsys.readouterr()
        line = refused(capsys, verb, "-c", file).splitlines()[-1]
        assert line.startswith("diffgan: error: ") and "Read-only file system" in line and str(folder) in line
