"""The frozen teacher: one adapter for each pipeline class of diffusers."""
