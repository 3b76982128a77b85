"""The memory that a training step takes, simulated without weights and without a GPU."""
