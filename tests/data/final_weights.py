"""What a checkpoint's weights are, in a few numbers that another version's can be compared with."""

import hashlib
from pathlib import Path
from typing import Any

import torch


def final_weights(checkpoint: Path) -> dict[str, Any]:
    """Digest of a checkpoint's weights, what its bits depend on, and the norms of some weights."""
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    content = hashlib.sha256()
    for name in sorted(weights):
        content.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    norms = {name: weight.norm().item() for name, weight in weights.items() if name.endswith("conv_in.weight")}
    machine = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    return {**machine, "digest": content.hexdigest(), "norms": norms}
