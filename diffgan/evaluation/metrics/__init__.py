"""Metrics of generated images: one file each, listed by the protocols."""
