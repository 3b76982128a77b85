"""A workspace, and the outcomes of mutants of its files."""

from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.mutations import Mutant
from tests.fuzz.runner import Outcome, mutants, run, run_in
from tests.fuzz.targets import TARGETS, make_results, prepare


class Campaign:
    """Mutants in copies of one workspace.

    Args:
        folder: an empty folder for the workspace and its copies.
    """

    def __init__(self, folder: Path):
        self.template, self.folder = folder / "template", folder
        prepare(self.template)
        log = folder / "template.log"
        assert run_in(self.template, log, make_results) == 0, log.read_text()
        self._valid: dict[str, Outcome] = {}

    def outcomes(self, name: str, count: int) -> Iterator[Outcome]:
        """The outcomes of `count` mutants of a target; the same ones every time."""
        target = TARGETS[name]
        made = mutants(target, (self.template / target.file).read_bytes(), name, count)
        for mutant in made:
            yield run(name, mutant, self.template, self.folder / "copy")

    def valid(self, name: str) -> Outcome:
        """The outcome of a target's command on the file as it is."""
        if name not in self._valid:
            data = (self.template / TARGETS[name].file).read_bytes()
            self._valid[name] = run(name, Mutant(data, "unchanged", "none"), self.template, self.folder / "copy")
        return self._valid[name]

    def faults(self, outcome: Outcome) -> list[str]:
        """What is wrong about an outcome."""
        return outcome.faults(self.valid(outcome.target).megabytes)
