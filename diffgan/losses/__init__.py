"""Losses: one function or class for each equation."""
