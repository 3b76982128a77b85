"""The miniature: a small Stable Diffusion trained on captioned images of real glyphs, with its data and weights."""
