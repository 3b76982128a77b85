"""Perceptual distances of latents: LatentLPIPS and E-LatentLPIPS, their training stages and their weight files."""
