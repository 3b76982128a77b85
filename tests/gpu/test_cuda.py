"""The demo's chain in small on a CUDA device: every step of part 1 of the check."""

from pathlib import Path

import pytest
import torch

from tests.gpu.chain import Chain
from tests.gpu.parts import OK, Setting, guarded

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),
]
STEPS = ["predict", "pairs verify", "fit, interrupted", "fit, resumed", "test", "export", "stock diffusers"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each step found; a step that failed is named by its own test."""
    chain = Chain(Setting(tiny=False, device=torch.device("cuda:0")), Path(tmp_path_factory.mktemp("chain")))
    return {name: guarded(step) for name, step in chain.steps().items()}


def test_the_steps_are_these(results):
    assert list(results) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_step_of_the_chain_works(results, step):
    assert results[step]["status"] == OK, results[step]
