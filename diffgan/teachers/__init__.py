"""The frozen teacher: one family for each pipeline class of diffusers (README.md in this folder)."""
