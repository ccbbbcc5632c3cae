"""The sets torchvision knows how to fetch and verify: mnist, cifar10, celeba."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from crayon.data.cache import cache_root, hold, make, storage_errors
from crayon.data.validate import DOWNLOADED, lacks
from crayon.errors import BadInput, one_line
from crayon.report.events import Emit, Progress

TIMEOUT_S = 30.0
"""How long a silent server is waited for."""


def downloaded(source: str, emit: Emit) -> Path:
    """The folder that holds `source` in torchvision's layout, downloaded and verified once per node.

    Raises BadInput when it can't be had.
    """

    def build(folder: Path) -> None:
        emit(Progress(f"downloading {source}", 0, 1))
        _download(source, folder)
        emit(Progress(f"downloading {source}", 1, 1))

    root = cache_root() / "downloads" / source
    if not hold(root):
        make(root, build)
    return root


def _download(source: str, folder: Path) -> None:
    """Raises BadInput where it can't be had or isn't whole."""
    try:
        with storage_errors(folder.parent), patience(), contextlib.ExitStack() as stack:
            if not sys.stderr.isatty():  # torchvision's progress bars are for terminals only
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            import torchvision.datasets  # four seconds to import, and rarely needed

            getattr(torchvision.datasets, DOWNLOADED[source].dataset)(str(folder), download=True)
            for archive in folder.glob(DOWNLOADED[source].archives):
                archive.unlink()
    except BadInput:
        raise
    except Exception as error:  # torchvision and what it calls raise a wide variety
        raise BadInput(
            f"{source} could not be downloaded ({one_line(error, 160)}): set --data.root to a folder that holds it, "
            "or use a built-in set that needs no download, --data.source digits, shapes or faces."
        ) from None
    if file := lacks(folder, source):
        raise BadInput(f"The download of {source} lacks {file}; try again, or set --data.root.")


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Downloads give up on a server that is silent for 30 seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
