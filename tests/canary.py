"""Planted secrets, and where to look for them: what processes show of themselves, and every byte of a folder."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path

import psutil

WANDB = "c0ffee" + "4b1d" * 8 + "90"
"""Looks like a W&B key: 40 hexadecimal digits."""
NETRC = "beefed" + "5a2e" * 8 + "71"
AWS = "cAnArY7kEyOfAwS3dOnTlEaKmE9pLeAsE4tEsTs0"
RAY = "canary0ray1token2" + "ab3d" * 8
ALL = (WANDB, NETRC, AWS, RAY)


def holds(data: bytes, secret: str) -> bool:
    """As it is, in UTF-16, or in base64 at any offset, as Ray passes its settings on."""
    raw = secret.encode()
    coded = (base64.b64encode(bytes(n) + raw)[(n * 8 + 5) // 6 : -4] for n in range(3))
    return any(shape in data for shape in (raw, secret.encode("utf-16-le"), *coded))


def in_bytes(data: bytes, secrets: Iterable[str] = ALL) -> list[str]:
    """Which of the secrets are in there, compressed parts unpacked."""
    found = [s for s in secrets if holds(data, s)]
    if data[:2] == b"\x1f\x8b":
        found += in_bytes(gzip.decompress(data), secrets)
    elif zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found += [s for name in archive.namelist() for s in in_bytes(archive.read(name), secrets)]
    return found


def in_folder(folder: Path, secrets: Iterable[str] = ALL) -> list[str]:
    """Every place under `folder` that holds one, names included. Sockets and pipes are no places."""
    found = []
    for parent, folders, files in os.walk(folder):
        found += [f"{parent}/{name}: name" for name in folders + files if in_bytes(name.encode(), secrets)]
        for path in (Path(parent, name) for name in files):
            if path.is_file():
                found += [f"{path}: {secret[:6]}" for secret in in_bytes(path.read_bytes(), secrets)]
    return found


class Watch(threading.Thread):
    """Looks at a command and all its children, again and again, until it ends."""

    def __init__(self, process: subprocess.Popen):
        super().__init__(daemon=True)
        self.process = psutil.Process(process.pid)
        self.told: set[str] = set()
        """The command lines there were."""
        self.listening: set[tuple[str, str]] = set()
        """(address, command line) of everything that listened."""
        self.knew: dict[str, set[str]] = {}
        """By secret: command lines of the processes whose environment had it."""
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.5):
            try:
                family = [self.process, *self.process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    self.told.add(line)
                    for connection in process.net_connections("inet"):
                        if connection.status == psutil.CONN_LISTEN:
                            self.listening.add((connection.laddr.ip, line[:200]))
                    values = process.environ().values()
                    for secret in ALL:
                        if secret in values:
                            self.knew.setdefault(secret, set()).add(line)

    def beyond_loopback(self) -> set[tuple[str, str]]:
        inside = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        return {(ip, line) for ip, line in self.listening if ip not in inside}
