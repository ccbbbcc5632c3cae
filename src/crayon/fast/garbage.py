"""How often Python looks for garbage that refers to itself.

Loading torch makes two hundred thousand objects that stay. By Python's threshold, which counts new objects, the
collector goes through them again and again, and once more at the end: an eighth of the time of the import, and a
quarter of a second after a command has said all it has to say (benchmarks/LOG.md).
"""

from __future__ import annotations

import atexit
import gc
import sys

from crayon.fast import enabled

NEW_OBJECTS = 50_000
"""How many make the collector look; Python's own threshold is 700, later versions' 2000. What a step of training makes
is freed by counting references, so it doesn't come near either."""


def relax() -> None:
    """For processes of our own, before they load torch. A program that uses the package as a library keeps its own."""
    if not enabled():
        return
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(_leave)  # first in, so last out


def _leave() -> None:
    """What is left at the end goes with the process, but for what reports it as leaked if it isn't collected."""
    if "triton" not in sys.modules:
        gc.freeze()
