"""Noise-latent pairs: generating them, keeping them, reading them."""
