"""Crayon: image models trained and tuned on Ray."""

__version__ = "0.1.0"
