"""Mutants of valid files are refused in one line, or run; nothing of before is changed."""

import math

import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.targets import TARGETS

CHEAP = [name for name, target in TARGETS.items() if target.cheap]
FEW, MANY = 40, 500  # mutants of `make test` and of `make test-all`, of all targets together


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("fuzz"))


def check(campaign, name, count):
    """Run mutants of a target; every fault and every accepted NaN of a configuration is reported."""
    outcomes = list(campaign.outcomes(name, count))
    assert campaign.valid(name).accepted, campaign.valid(name).errors
    problems = {outcome.mutant.description: campaign.faults(outcome) for outcome in outcomes}
    problems = {description: faults for description, faults in problems.items() if faults}
    accepted = [outcome.mutant for outcome in outcomes if outcome.accepted]
    if "configuration" in name:
        problems |= {mutant.description: "accepted" for mutant in accepted if mutant.kind in ("NaN", "infinity")}
    assert not problems, "\n".join(f"{description}: {faults}" for description, faults in problems.items())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CHEAP)
def test_a_few_mutants(name, campaign):
    check(campaign, name, FEW // len(CHEAP))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutants(name, campaign):
    check(campaign, name, math.ceil(MANY / len(TARGETS)))
