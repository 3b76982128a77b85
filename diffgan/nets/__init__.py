"""The networks that are trained: the one-step generator and the discriminator."""
