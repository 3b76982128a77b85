"""diffgan: distill a latent diffusion model into a one-step conditional GAN."""
