"""The demonstration: an Echo autoencoder and a Gaussian VAE that differ only in the channel."""
