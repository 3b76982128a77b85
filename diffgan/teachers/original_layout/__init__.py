"""Weights in the layout of the original Stable Diffusion code: one file, names as its modules are numbered.

Each module turns the weights of one network of diffusers or transformers into that layout; a teacher family says which
of them make its file (`Teacher.in_original_layout`). The names are those of the released files of SD1.x and SDXL.
"""
