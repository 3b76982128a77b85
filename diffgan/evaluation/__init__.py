"""Evaluation of generators by named protocols."""
