"""Check a GPU: `python -m tests.gpu`; README.md in this folder says how to read it."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch

from diffgan.errors import UserError
from tests.gpu.all_parts import PARTS
from tests.gpu.machine import machine
from tests.gpu.parts import Budget, Part, Setting, guarded, run_parts
from tests.gpu.report import Report
from tests.gpu.timing import rates


def arguments(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=360.0, help="budget; what it cuts is recorded")
    parser.add_argument("--parts", type=numbers, default=[part.number for part in PARTS], help="such as 1,2")
    parser.add_argument("--output", type=Path, help="JSON file, written anew after every cell")
    parser.add_argument("--tiny", action="store_true", help="the same code with tiny networks on the CPU")
    return parser.parse_args(words)


def numbers(text: str) -> list[int]:
    """ "1,2" -> [1, 2]; argparse reports the ValueError of a number that is no part."""
    chosen = [int(word) for word in text.split(",")]
    if unknown := set(chosen) - {part.number for part in PARTS}:
        raise argparse.ArgumentTypeError(f"there is no part {sorted(unknown)[0]}")
    return chosen


def check(parts: list[Part], setting: Setting, report: Report, budget: Budget) -> None:
    """Run parts and record them beside what they ran on."""
    report.set(tiny=setting.tiny, budget=budget.seconds, machine=machine(setting))
    report.set(rates=guarded(lambda: rates(setting)))
    run_parts(parts, setting, report, budget)
    report.set(seconds=budget.used(), complete=True)


def main(words: list[str] | None = None) -> int:
    """Run the check; returns the exit code, which says nothing about the results."""
    options = arguments(sys.argv[1:] if words is None else words)
    budget = Budget(options.seconds)
    if not options.tiny and not torch.cuda.is_available():
        print("tests.gpu: error: there is no CUDA device; --tiny runs on a CPU", file=sys.stderr)
        return 1
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.tiny:
        torch.set_num_threads(1)  # tiny networks gain nothing from more, and lose much on a busy machine
    setting = Setting(options.tiny, torch.device("cpu" if options.tiny else "cuda:0"))
    report = Report(options.output)
    try:
        check([part for part in PARTS if part.number in options.parts], setting, report, budget)
    except UserError as error:  # the record cannot be written
        print(f"tests.gpu: error: {error}", file=sys.stderr)
        return 1
    print(report.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
