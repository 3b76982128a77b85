"""Part 7: where a training step waits for the device, and how many kernels it launches."""

import contextlib
import traceback
import warnings
from collections import Counter
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.pairs.batch import PairBatch
from diffgan.teachers.registry import load_teacher
from tests.gpu.networks import SD15, RandomDistillation, adversarial_training, random_teacher
from tests.gpu.parts import ROOT, Cell, Setting, own_file
from tests.gpu.training import Measured, RandomPairData, RandomPairs, fit

BATCH, FIRST, WATCHED = 16, 1, 8  # the first batch has the gradient penalty
MOST_PLACES = 25
WAITED = "called a synchronizing CUDA operation"
TRANSFERS = ("Memcpy", "Memset")


def cells(setting: Setting) -> list[Cell]:
    """Both on the miniature, whose step is short."""
    return [
        Cell("waiting calls", partial(waiting_calls, setting)),
        Cell("kernels", partial(kernels, setting)),
    ]


class _Watched(pl.Callback):
    """Opens a context at the end of the first batch, and closes it after `batches` more, or at an error."""

    def __init__(self, context: Any, batches: int):
        self.context, self.batches, self.ended = context, batches, 0
        self.opened = contextlib.ExitStack()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Diffusion2GAN, *_: Any) -> None:
        self.ended += 1
        if self.ended == FIRST:
            self.opened.enter_context(self.context)
        elif self.ended == FIRST + self.batches:
            self.opened.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Diffusion2GAN, exception: BaseException) -> None:
        self.opened.close()


class WaitingCalls:
    """Context that counts the calls in which the host waits for the device, by their place.

    torch's `set_sync_debug_mode` warns of every such call; a place is the innermost line of this repository, with the
    innermost line of all.
    """

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> "WaitingCalls":
        self._caught.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self.count
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(*_)

    def count(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """In place of `warnings.showwarning`."""
        if WAITED in str(message):
            self.places[_place()] += 1


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if "warnings" not in frame.filename]
    frames = [frame for frame in frames if not frame.filename.endswith("gpu/syncs.py")]
    own = [frame for frame in frames if own_file(frame.filename)]
    chosen = dict.fromkeys(_short(frame) for frame in (*own[-1:], *frames[-1:]))
    return " <- ".join(chosen)


def _short(frame: traceback.FrameSummary) -> str:
    name = frame.filename.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
    return f"{name}:{frame.lineno}"


def waiting_calls(setting: Setting) -> dict[str, Any]:
    """Calls per step in which the host waits, and the most frequent places."""
    setting.require_cuda()
    waiting = WaitingCalls()
    _train(setting, waiting, WATCHED)
    places = {place: count / WATCHED for place, count in waiting.places.most_common(MOST_PLACES)}
    return {"per step": sum(waiting.places.values()) / WATCHED, "places": places}


def kernels(setting: Setting) -> dict[str, Any]:
    """Kernels and transfers that one step launches on the device; on a CPU its operators."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if setting.device.type == "cuda" else []
    record = profile(activities=activities)
    _train(setting, record, 1)
    events = record.events()
    if setting.device.type != "cuda":
        return {"per step": sum(event.name.startswith("aten::") for event in events), "of": "operators"}
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    names = [event.name for event in on_device if not getattr(event, "is_user_annotation", False)]
    transfers = sum(name.startswith(TRANSFERS) for name in names)
    return {"per step": len(names) - transfers, "transfers": transfers}


def _train(setting: Setting, context: Any, batches: int) -> None:
    """Some adversarial steps on glyphs whose prompts are encoded in the step; the context spans the last ones."""
    teacher = random_teacher(setting, SD15) if setting.tiny else load_teacher("glyphs").to(setting.device)
    batch = setting.choose(BATCH, 2)
    pairs = RandomPairs(teacher, cached=False)
    options = {"keep_text": True, "adversarial": adversarial_training()}
    module = RandomDistillation(teacher, setting, batch * (FIRST + batches + 1), **options)
    fit(setting, module, RandomPairData(pairs, batch), [_Watched(context, batches), Measured(_nothing)])


def _nothing(module: Diffusion2GAN, batch: PairBatch) -> None:
    """What part 7 measures afterwards."""
