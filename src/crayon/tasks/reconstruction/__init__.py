"""Autoencoders: network, loss, metrics and plots."""
