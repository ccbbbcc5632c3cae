"""A command on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence


def on_terminal(command: Sequence[str], size: tuple[int, int] | None = None, **environment: str) -> str:
    """What `command` writes to a terminal in colour, of `size` (lines, columns) where that is given."""
    leader, follower = pty.openpty()
    if size is not None:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        env=env | {"TERM": "xterm-256color"} | environment,
    )
    os.close(follower)
    output, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline:
        ready, _, _ = select.select([leader], [], [], 0.2)
        if ready:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            output += data
    os.close(leader)
    process.wait(10)
    return output.decode()


def bare(text: str) -> str:
    """`text` without what moves the cursor and sets colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
