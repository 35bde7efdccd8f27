"""The demonstration: an Echo autoencoder and a Gaussian VAE, alike in everything but the channel."""
