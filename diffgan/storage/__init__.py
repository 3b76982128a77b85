"""Whole files, on a disk or behind a URL."""
