"""Classifiers: network, loss, metrics and plots."""
