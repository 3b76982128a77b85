"""Exports, perceptual weights and pair sets on a model hub: what is uploaded, its card, and the upload."""
