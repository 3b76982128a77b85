"""The verbs of `diffgan pairs`."""
