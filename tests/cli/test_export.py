"""Exports that are killed, meet a full disk, meet each other, or are asked of a damaged run."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel

from diffgan.__main__ import main
from diffgan.storage.digests import digest
from tests.pair_sets import contents, wait_until
from tests.processes import SERVER, run_apart, start
from tests.runs import checkpoint, distillation, refused, write

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def runs(tiny_pipeline, pairs, tmp_path_factory):
    """The folders of two runs that learnt different weights."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder, rate in zip(folders, (3e-3, 1e-2), strict=True):
        config = distillation(tiny_pipeline, pairs, folder)
        config["model"]["init_args"]["images"] = 16
        config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = rate
        main(["fit", "-c", write(folder / "fit.yaml", config)])
    return [folder / "run" for folder in folders]


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """Their exports, made without a break, which nobody may change."""
    folder = tmp_path_factory.mktemp("exports")
    for name, run in zip(("first", "second"), runs, strict=True):
        main(words(run, folder / name))
    return [folder / "first", folder / "second"]


@pytest.fixture
def damaged(runs, tmp_path):
    """A copy of the first run, whose checkpoint a test may damage."""
    return shutil.copytree(runs[0], tmp_path / "copy" / "run")


def words(run, output):
    return ["export", str(run), str(output)]


def require_whole(output, runs, exports):
    """A complete export of one of the runs: record, weights, and every other file."""
    record = json.loads((output / "diffgan.json").read_text())
    (number,) = (i for i, run in enumerate(runs) if digest(run / "checkpoints" / "last.ckpt") == record["checkpoint"])
    average = checkpoint(runs[number])["state_dict"]
    weights = load_file(output / UNET)
    assert all(torch.equal(weight, average[f"generator_ema.unet.{name}"]) for name, weight in weights.items())
    grid = {"samples.png": b""}  # a run's grid is found by its images, and both runs have as many
    assert contents(output) | grid == contents(exports[number]) | grid


def require_kept(output, export):
    """The export is as it was, and nothing else lies beside it."""
    assert contents(output) == contents(export)
    assert not output.with_name(f"{output.name}.partial").exists()


def test_an_export_opens_and_draws_in_stock_diffusers_without_arguments(exports):
    pipeline = DiffusionPipeline.from_pretrained(exports[0])
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("digit 7", num_inference_steps=1, guidance_scale=1, output_type="pt").images.isfinite().all()
    _, info = CLIPTextModel.from_pretrained(exports[0], subfolder="text_encoder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with safe_open(exports[0] / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    assert (exports[0] / "tokenizer" / "merges.txt").is_file()


# ---- kills ----


@pytest.mark.parametrize(
    "kills", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids="kills={}".format
)
def test_killed_export_costs_nothing(runs, exports, tmp_path, kills):
    """kill -9 at random moments, half of them over an older export, half while it writes; then the same command."""
    seed = random.SystemRandom().randrange(2**32)  # the fits have seeded the other one
    chance, seconds, killed = random.Random(seed), unbroken_seconds(runs[0], tmp_path / "timed"), 0
    print(f"moments of seed {seed} in {seconds:.2f} seconds")
    for attempt in itertools.count():
        assert attempt < 5 * kills
        older, writing = attempt % 2 == 1, attempt % 4 >= 2
        output = tmp_path / f"student-{attempt}"
        if older:
            shutil.copytree(exports[1], output)
        moment = chance.uniform(0, seconds / 5 if writing else seconds)
        killed += kill_export(words(runs[0], output), moment, tmp_path if writing else None)
        if older or output.exists():
            require_whole(output, runs, exports)
        main(words(runs[0], output))
        require_kept(output, exports[0])
        if killed >= kills and attempt % 4 == 3:
            break


def unbroken_seconds(run, output) -> float:
    """How long a process takes that exports; the first one waits for the server of processes."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        process = start(words(run, output))
        process.join(120)
        assert process.exitcode == 0
        times.append(time.monotonic() - began)
    return min(times)


def kill_export(command, seconds, folder=None) -> bool:
    """Kill the command so many seconds after its start, or after the first new weights in `folder`; whether it ran."""
    before = set() if folder is None else weights_in(folder)
    process = start(command)
    if folder is not None:
        wait_until(lambda: weights_in(folder) - before or not process.is_alive())
    time.sleep(seconds)
    process.kill()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def weights_in(folder) -> set:
    return {path for path, _, names in os.walk(folder) if any(name.endswith(".safetensors") for name in names)}


RENAMES = ("os.rename",)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


@pytest.mark.parametrize(
    "steps", [RENAMES, pytest.param(CHANGES, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=len
)
def test_kill_at_every_step_over_an_older_export_costs_nothing(runs, exports, tmp_path, steps):
    """Before every change of names and folders there is."""
    for number in itertools.count(1):
        output = shutil.copytree(exports[1], tmp_path / f"student-{number}")
        ended = run_apart(die_before_step, words(runs[0], output), steps, number)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        if output.exists():
            require_whole(output, runs, exports)
        main(words(runs[0], output))
        require_kept(output, exports[0])
    assert number > len(steps) + 2
    require_kept(output, exports[0])


def die_before_step(command, steps, number) -> None:
    """Run the command and kill -9 this process before its `number`-th step of these kinds (names of audit events)."""
    taken = iter(range(number))

    def watch(event, _):
        if event in steps and next(taken) == number - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    main(command)


def test_refused_rerun_restores_the_older_export(runs, exports, damaged, tmp_path, capsys):
    """Killed between two renames; then the run's checkpoint is damaged."""
    output = shutil.copytree(exports[1], tmp_path / "student")
    number = next(n for n in itertools.count(1) if killed_without_output(damaged, output, n))
    assert number > 1
    flip_bit(damaged)
    assert "broken" in refused(capsys, *words(damaged, output))
    require_kept(output, exports[1])


def killed_without_output(run, output, number) -> bool:
    assert run_apart(die_before_step, words(run, output), RENAMES, number) == -signal.SIGKILL
    return not output.exists()


# ---- damaged runs ----


def flip_bit(run):
    """The lowest bit of an averaged weight."""
    file = run / "checkpoints" / "last.ckpt"
    weight = checkpoint(run)["state_dict"]["generator_ema.unet.conv_in.weight"]
    content = bytearray(file.read_bytes())
    content[content.index(weight.contiguous().numpy().tobytes())] ^= 1
    file.write_bytes(content)


def put_nan(run):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["generator_ema.unet.conv_out.bias"][0] = float("nan")
    torch.save(content, run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip_bit, "the checkpoint is broken"), (put_nan, "generator_ema.unet.conv_out.bias is not finite")],
)
@pytest.mark.parametrize("older", [True, False])
def test_damaged_checkpoint_is_refused(damaged, exports, tmp_path, capsys, damage, reason, older):
    output = tmp_path / "student"
    if older:
        shutil.copytree(exports[1], output)
    damage(damaged)
    (line,) = refused(capsys, *words(damaged, output)).splitlines()
    assert f"{damaged}/checkpoints/last.ckpt: {reason}" in line and "diffgan fit --ckpt_path previous" in line
    if older:
        require_kept(output, exports[1])
    else:
        assert not list(tmp_path.glob("student*"))


def test_checkpoint_replaced_meanwhile_is_not_mixed(damaged, runs, exports, tmp_path, capsys):
    """As a fit does that runs on; weights and record never come from two checkpoints."""
    stop, output = threading.Event(), tmp_path / "student"
    writer = threading.Thread(target=keep_replacing, args=(damaged, runs, stop))
    writer.start()
    try:
        line = refused(capsys, *words(damaged, output))
    finally:
        stop.set()
        writer.join()
    assert "last.ckpt: was replaced while it was read; run the same command again" in line
    main(words(damaged, output))
    require_whole(output, runs, exports)


def keep_replacing(run, runs, stop):
    last = run / "checkpoints" / "last.ckpt"
    for source in itertools.cycle(runs):
        if stop.is_set():
            return
        new = shutil.copy(source / "checkpoints" / "last.ckpt", last.with_name("new"))
        os.replace(new, last)


# ---- disks ----


@pytest.mark.parametrize("spare", [8, 100, 148, 156, 164, 172, 180, 320, 452])
def test_full_disk_leaves_the_older_export(runs, exports, small_disk, capsys, spare):
    """Wherever it fills up; `spare`: KiB beside the older export. Tokenizers and weights have errors of their own."""
    small = small_disk("size=8m")
    output = shutil.copytree(exports[1], small / "student")
    small_disk(f"size={used(small) + spare}k")
    (line,) = refused(capsys, *words(runs[0], output)).splitlines()
    assert f"{output}" in line and "No space left on device" in line
    require_kept(output, exports[1])
    small_disk("size=8m")
    main(words(runs[0], output))
    require_kept(output, exports[0])


def used(disk) -> int:
    """KiB."""
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize // 1024


@pytest.mark.parametrize("most", [600, 50_000, 200_000])
def test_file_that_may_not_grow_leaves_the_older_export(runs, exports, tmp_path, most):
    """Files of at most so many bytes, which the kernel enforces wherever the tests run."""
    output, shown = shutil.copytree(exports[1], tmp_path / "student"), tmp_path / "shown.txt"
    assert run_apart(export_with_small_files, words(runs[0], output), most, shown) == 1
    (line,) = shown.read_text().splitlines()
    assert f"{output}: cannot be written (File too large" in line
    require_kept(output, exports[1])
    fresh = tmp_path / "fresh"
    assert run_apart(export_with_small_files, words(runs[0], fresh), most, shown) == 1
    assert not list(tmp_path.glob("fresh*"))


def export_with_small_files(command, most, shown) -> None:
    sys.stderr = shown.open("w", buffering=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    main(command)


def test_unwritable_places_are_one_line(runs, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "file: exists and holds no diffgan.json; choose another output" in refused(capsys, *words(runs[0], file))
    assert "Not a directory" in refused(capsys, *words(runs[0], file / "student"))
    assert file.read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_read_only_disk_is_one_line(runs, small_disk, capsys):
    output = small_disk("ro") / "student"
    (line,) = refused(capsys, *words(runs[0], output)).splitlines()
    assert f"{output}: cannot be written (Read-only file system" in line


# ---- neighbours ----


def test_folder_of_the_partial_s_name_is_kept(runs, exports, tmp_path, capsys):
    """An export of that name is no left-over, nor is anything that a user put there."""
    shutil.copytree(exports[1], tmp_path / "student.partial")
    assert "student.partial: exists and was not left" in refused(capsys, *words(runs[0], tmp_path / "student"))
    assert contents(tmp_path / "student.partial") == contents(exports[1])
    assert os.listdir(tmp_path) == ["student.partial"]


def test_other_folder_in_the_output_s_place_is_kept(runs, tmp_path, capsys):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "notes.txt").write_text("mine")
    assert "holds no diffgan.json" in refused(capsys, *words(runs[0], tmp_path / "student"))
    assert contents(tmp_path) == {"student/notes.txt": b"mine"}


def test_export_through_a_link_keeps_the_link(runs, exports, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "student").symlink_to(tmp_path / "disk" / "student")
    for number in (1, 0):
        main(words(runs[number], tmp_path / "student"))
        require_kept(tmp_path / "disk" / "student", exports[number])
    assert (tmp_path / "student").is_symlink() and os.listdir(tmp_path / "disk") == ["student"]


def test_second_export_to_the_same_output_is_refused(runs, exports, tmp_path, capsys):
    """While the first one stands still; then that one ends as if it had been alone."""
    output = tmp_path / "student"
    first = SERVER.Process(target=main, args=(words(runs[0], output),))
    first.start()
    wait_until(lambda: (tmp_path / "student.partial" / "new").exists())
    os.kill(first.pid, signal.SIGSTOP)
    line = refused(capsys, *words(runs[1], output))
    os.kill(first.pid, signal.SIGCONT)
    first.join(60)
    assert "another process is writing there" in line and first.exitcode == 0
    require_kept(output, exports[0])


def test_exports_at_once_end_with_a_whole_one(runs, exports, tmp_path):
    output = tmp_path / "student"
    for _ in range(3):
        processes = [start(words(run, output)) for run in runs]
        for process in processes:
            process.join(60)
        assert sorted(process.exitcode for process in processes) in ([0, 0], [0, 1])
        require_whole(output, runs, exports)
        assert os.listdir(tmp_path) == ["student"]
