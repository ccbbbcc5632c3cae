"""What exists for speed alone: each with a plain path beside it, and all of it off with CRAYON_FAST=0."""

import os


def enabled() -> bool:
    """Whether the fast paths are taken."""
    return os.environ.get("CRAYON_FAST", "1") != "0"
