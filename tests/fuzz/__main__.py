"""`python -m tests.fuzz [COUNT] [TARGET ...]`: run mutants of every target and print what was found."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.targets import TARGETS


def summary(count: int, names: list[str]) -> None:
    """Run about `count` mutants, the same number of each target, and print faults, acceptances, time and memory."""
    outcomes, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        for name in names:
            for outcome in campaign.outcomes(name, -(-count // len(names))):
                outcomes.append(outcome)
                faults.append(campaign.faults(outcome))
                if faults[-1]:
                    print(f"{name}: {outcome.mutant.description}: {'; '.join(faults[-1])}")
                    last = (outcome.errors.strip().splitlines() or ["(no message)"])[-1]
                    print(f"    {last[:200]}", flush=True)
    print(f"mutants                    {len(outcomes)}")
    print(f"with faults                {sum(map(bool, faults))}")
    print(f"tracebacks                 {sum('traceback' in found for found in faults)}")
    accepted = Counter((each.target, each.mutant.kind) for each in outcomes if each.accepted)
    print(f"accepted                   {sum(accepted.values())}")
    for (target, kind), number in sorted(accepted.items()):
        print(f"    {target}: {kind}: {number}")
    print(f"longest                    {max(each.seconds for each in outcomes):.1f} s")
    print(f"most memory                {max(each.megabytes for each in outcomes):.0f} MB")


if __name__ == "__main__":
    summary(int(sys.argv[1]) if len(sys.argv) > 1 else 40, sys.argv[2:] or list(TARGETS))
