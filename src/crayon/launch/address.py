"""Which Ray cluster is joined: the one that RAY_ADDRESS names, or that `ray start` left on this machine."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from crayon.errors import BadInput
from crayon.system import secrets
from crayon.system.files import user

CONNECT_SECONDS = 5.0
"""Within which a cluster answers. Ray itself tries for minutes, prints warnings, and then ends the process."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""With which a gRPC client begins: HTTP/2's preface, and settings, of which there are none."""
NOTE = "ray/ray_current_cluster"
HERE = "unset RAY_ADDRESS to use this machine"


def joins() -> bool:
    """Whether there is a cluster to join: RAY_ADDRESS names one, as it does inside a submitted job, or `ray start`
    ran on this machine and its cluster still answers."""
    return bool(address())


def address() -> str:
    """Of the cluster to join, as RAY_ADDRESS or `ray start` has it; "" where there is none, and Ray is started here."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "auto":
        return next(_started_here(by_anyone=True), named)
    if not named:
        return next((left for left in _started_here(by_anyone=False) if _answer(left) == "ray"), "")
    return "" if named == "local" else named


def check() -> None:
    """Raises BadInput where RAY_ADDRESS names no cluster, or one that doesn't answer."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named in ("", "local"):
        return
    known = address()
    if known == "auto":
        raise BadInput(
            f"RAY_ADDRESS=auto, but there is no address in {temporary() / NOTE}, where `ray start` leaves it; set "
            f"RAY_ADDRESS=HOST:PORT, or {HERE}."
        )
    shown = f"RAY_ADDRESS={secrets.shown(named)}" + (f" ({known})" if named == "auto" else "")
    scheme, _, place = known.rpartition("://")
    answer = "http" if scheme in ("http", "https") else _answer(place) if scheme in ("", "ray") else None
    if answer == "http":
        host = re.sub(r":\d*$", "", place.split("/")[0].rpartition("@")[2])
        raise BadInput(
            f"{shown} is where the cluster's dashboard is, which takes jobs (ray job submit --address ...); to join "
            f"the cluster from here set RAY_ADDRESS={host}:6379 or whatever port `ray start` was given, or {HERE}."
        )
    if answer is None:
        raise BadInput(
            f"{shown} is no address of a Ray cluster; write HOST:PORT, such as 10.0.0.1:6379, or {HERE}."
        )
    if answer != "ray":
        raise BadInput(f"No Ray cluster answers at {shown}; start it, or {HERE}.")


def temporary() -> Path:
    """Where Ray keeps its files, of clusters that `ray start` made, too."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()


def _started_here(by_anyone: bool) -> Iterator[str]:
    """Addresses that `ray start` left on this machine, also with a `--temp-dir` that a node of its runs with.

    by_anyone: whether another user's cluster is meant, too. Anyone can leave a note in a shared folder such as /tmp,
        and would be sent this user's code and data.
    """
    for note in _notes():
        with contextlib.suppress(OSError, ValueError):  # another user's, or damaged
            status = note.stat()
            if stat.S_ISREG(status.st_mode) and (by_anyone or status.st_uid in (0, user())):
                with note.open("rb") as file:
                    text = file.read(300).decode().strip()
                if _parts(text):
                    yield text


def _notes() -> Iterator[Path]:
    yield temporary() / NOTE
    if not os.environ.get("RAY_TMPDIR"):  # which says where
        yield from (folder / Path(NOTE).name for folder in _folders_of_nodes())


@functools.cache
def _folders_of_nodes() -> tuple[Path, ...]:
    """With which the nodes of Ray clusters run on this machine, when it is asked first."""
    found: dict[Path, None] = {}
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet":
            with contextlib.suppress(psutil.Error):
                words = (word.partition("=") for word in process.cmdline())
                found |= {Path(value): None for name, _, value in words if name == "--temp_dir"}
    return tuple(found)


def _parts(text: str) -> tuple[str, int] | None:
    """Host and port."""
    match = re.fullmatch(r"(\[[^\s/@\]]+\]|[^\s/@]+):(\d{1,5})", text)
    return (match[1].strip("[]"), int(match[2])) if match and int(match[2]) < 2**16 else None


def _answer(text: str) -> str | None:
    """Who answers at host:port: "ray", "http" for a web server such as its dashboard, or "" for nobody; None where
    `text` is no host:port."""
    parts = _parts(text)
    if parts is None:
        return None
    try:
        with socket.create_connection(parts, CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") in ("1", "true"):
                return "ray"
            connection.sendall(GREETING)
            answer = connection.recv(9)
    except (OSError, ValueError):  # ValueError: of names that can't be a host's
        return ""
    return "http" if answer.startswith((b"HTTP/1", b"<")) else "ray" if answer[3:4] == b"\x04" else ""
