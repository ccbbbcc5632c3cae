"""Crayon: image models trained and tuned on Ray."""
