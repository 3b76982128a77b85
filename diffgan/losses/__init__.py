"""The losses: pure functions, one for each equation."""
