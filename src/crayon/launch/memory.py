"""Processes that were ended for want of memory, by the kernel or by Ray."""

from __future__ import annotations

import re

from crayon.system.host import memory_kills

SIGN = "running low on memory|OutOfMemory"
"""What Ray says of those that it ended."""
LESS = "fewer --workers, a smaller --global-batch-size or, for a folder of images, --data.cache off"
"""What needs less memory."""
KILLED = "the kernel has killed a process here for want of memory"


class Kills:
    """Notices when the kernel kills processes of this machine for want of memory."""

    def __init__(self) -> None:
        self._seen = memory_kills()

    def any_new(self) -> bool:
        """Whether it has killed any since it was last asked."""
        before, self._seen = self._seen, memory_kills()
        return self._seen > before


def ended(why: str) -> bool:
    """Whether `why`, Ray's word of a lost process, is want of memory."""
    return re.search(SIGN, why, re.IGNORECASE) is not None
