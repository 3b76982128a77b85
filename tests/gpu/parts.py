"""Parts of the check and their cells: each is guarded, a budget of seconds cuts the rest, nothing measured is lost."""

import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.gpu.report import Report

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_TIME = "not run: out of time"
OUT_OF_MEMORY = "out of memory"
FAILED = "failed"
OK = "ok"


class NotApplicable(Exception):
    """Raised by a cell that makes no sense on this machine; its text is the cell's status."""


@dataclass
class Setting:
    """What the check runs on.

    tiny: tiny networks on the CPU.  device: of the networks.  shared: what the cells of a part share, by name.
    """

    tiny: bool
    device: torch.device
    shared: dict[str, Any] = field(default_factory=dict)

    def choose(self, full: Any, tiny: Any) -> Any:
        """A size on a GPU or the one of tiny networks."""
        return tiny if self.tiny else full

    def once(self, name: str, build: Callable[[], Any]) -> Any:
        """What `build` returns, kept until the end of the part."""
        if name not in self.shared:
            self.shared[name] = build()
        return self.shared[name]

    def require_cuda(self) -> None:
        """Raises NotApplicable on a CPU."""
        if self.device.type != "cuda":
            raise NotApplicable("needs CUDA")

    def memory(self) -> int:
        """Bytes of the GPU; 0 on a CPU."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else 0

    def clear(self) -> None:
        """Free what the cells share, and the allocator's memory."""
        self.shared.clear()
        free_memory()


class Cell(NamedTuple):
    """One measurement.

    name: of the row in the part's table.  measure: returns plain values by the name of their column.
    seconds: the cell is not begun with less time left.  last: run it after all other parts.
    """

    name: str
    measure: Callable[[], dict[str, Any]]
    seconds: float = 0.0
    last: bool = False


class Part(NamedTuple):
    """Some cells.

    number: as in `--parts`.  title: of its table.  share: of the budget, relative to those of the other parts.
    cells: called with the setting when the part begins.  chained: a cell needs those before it, so none is put off.
    """

    number: int
    title: str
    share: float
    cells: Callable[[Setting], list[Cell]]
    chained: bool = False


class Budget:
    """A number of seconds that began with the process's check."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.monotonic()

    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self.seconds - self.used()


def run_parts(parts: Sequence[Part], setting: Setting, report: Report, budget: Budget) -> None:
    """Run parts in their order, then the cells that were put off, as long as there is time.

    A part that has used its share of the budget puts its other cells off. Every cell is recorded, those that were not
    run too.
    """
    put_off: list[tuple[Part, Cell]] = []
    shares = sum(part.share for part in parts)
    for part in parts:
        report.begin(part.number, part.title)
        limit = math.inf if part.chained else budget.used() + part.share / shares * budget.seconds
        if budget.left() <= 0:
            report.end(part.number, OUT_OF_TIME, 0.0)
            continue
        put_off += [(part, cell) for cell in _run_part(part, setting, report, budget, limit)]
        setting.clear()
    for part, cell in put_off:
        _run_cell(part, cell, setting, report, budget)
        setting.clear()


def _run_part(part: Part, setting: Setting, report: Report, budget: Budget, limit: float) -> list[Cell]:
    """Run a part's cells; returns those that are put off."""
    start, put_off = time.monotonic(), []
    result = guarded(lambda: {"cells": part.cells(setting)})
    for cell in result.pop("cells", []):
        if cell.last or budget.used() > limit:
            report.cell(part.number, cell.name, {"status": OUT_OF_TIME})  # until it is run after the other parts
            put_off.append(cell)
        else:
            _run_cell(part, cell, setting, report, budget)
    report.end(part.number, **(result | {"seconds": time.monotonic() - start}))
    return put_off


def _run_cell(part: Part, cell: Cell, setting: Setting, report: Report, budget: Budget) -> None:
    """Run a cell if there is time, and record it."""
    if budget.left() <= cell.seconds:
        report.cell(part.number, cell.name, {"status": OUT_OF_TIME})
        return
    result = guarded(cell.measure)
    if result["status"] == OUT_OF_MEMORY:
        setting.clear()
    free_memory()
    report.cell(part.number, cell.name, result)
    print(f"part {part.number}, {cell.name}: {result['status']}, {result.get('seconds', 0):.1f} s", file=sys.stderr)


def guarded(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The values of a measurement with its status and seconds; of a failed one the error and its place."""
    start = time.monotonic()
    try:
        values = {"status": OK} | measure()
    except NotApplicable as reason:
        return {"status": str(reason)}
    except (Exception, SystemExit) as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's trainer turns it into an exit
            raise KeyboardInterrupt from error
        values = _failure(error)
    return values | {"seconds": time.monotonic() - start}


def _failure(error: BaseException) -> dict[str, Any]:
    """Status, error and place; out of memory is a result (libraries report it in their own words)."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
        return {"status": OUT_OF_MEMORY}
    return {"status": FAILED, "error": _last_line(error), "place": place_of(error)}


def _last_line(error: BaseException) -> str:
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    return lines[0] if len(lines) < 2 else f"{lines[0]} ... {lines[-1]}"


def place_of(error: BaseException) -> str:
    """Where an error was raised: the last line of this repository, then the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename)}:{frame.lineno}" for frame in frames]
    own = [place for place in places if own_file(place)]
    chosen = dict.fromkeys([*own[-1:], *places[-1:]])
    return " <- ".join(place.removeprefix(f"{ROOT}/") for place in chosen)


def own_file(path: str) -> bool:
    """Whether a file is this repository's, not one of its virtual environment."""
    return path.startswith(f"{ROOT}/") and "site-packages" not in path


def free_memory() -> None:
    """Collect what failed cells left, and return the allocator's memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
