"""`python -m tests.fuzz [COUNT] [TARGET ...]`: run mutants of every target and print what was found."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.targets import TARGETS


def summary(count: int, names: list[str]) -> None:
    """Run about `count` mutants, the same number of each target, and print faults, acceptances, time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        outcomes = [outcome for name in names for outcome in campaign.outcomes(name, -(-count // len(names)))]
        faults = [(outcome, campaign.faults(outcome)) for outcome in outcomes]
    for outcome, found in faults:
        if found:
            print(f"{outcome.target}: {outcome.mutant.description}: {'; '.join(found)}")
            print(f"    {(outcome.errors.strip().splitlines() or ['(no message)'])[-1][:200]}")
    print(f"mutants                    {len(outcomes)}")
    print(f"with faults                {sum(bool(found) for _, found in faults)}")
    print(f"tracebacks                 {sum('traceback' in found for _, found in faults)}")
    accepted = Counter((each.target, each.mutant.kind) for each in outcomes if each.accepted)
    print(f"accepted                   {sum(accepted.values())}")
    for (target, kind), number in sorted(accepted.items()):
        print(f"    {target}: {kind}: {number}")
    print(f"longest                    {max(each.seconds for each in outcomes):.1f} s")
    print(f"most memory                {max(each.megabytes for each in outcomes):.0f} MB")


if __name__ == "__main__":
    summary(int(sys.argv[1]) if len(sys.argv) > 1 else 40, sys.argv[2:] or list(TARGETS))
