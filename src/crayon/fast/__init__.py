"""What exists for speed alone: each with a plain path beside it."""

import os


def enabled() -> bool:
    """Whether it is used: CRAYON_FAST=0 turns all of it off, which changes no result."""
    return os.environ.get("CRAYON_FAST", "1") != "0"
