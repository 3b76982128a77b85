"""Noise-latent pairs: generating them with many processes, storing them, reading them."""
