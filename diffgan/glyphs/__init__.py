"""The miniature: a small Stable Diffusion trained on real, captioned glyphs, its data and its shipped weights."""
