"""GANs: networks, losses, metrics and plots, and what is done in a generator's latent space."""
