"""Losses: pure functions, one for each equation."""
