"""Folders and files that nobody else on this machine can read, or put something into."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from crayon.errors import BadInput


def user() -> int:
    """This user's number; 0 on Windows, which has none, and gives everyone a temporary folder of his own."""
    return os.getuid() if hasattr(os, "getuid") else 0


def folder(path: Path) -> Path:
    """`path`, made for this user alone. Raises BadInput where someone else made it first: in a shared place such as
    /tmp anyone can."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != user():
            raise BadInput(
                f"{path} belongs to someone else or is a link; remove it, or set TMPDIR to another folder."
            )
        if status.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise BadInput(
            f"{path} can't be made a folder ({error.strerror}); set TMPDIR to another folder."
        ) from None
    return path


def refuse_links(folder: Path) -> None:
    """Raises BadInput where a link lies in a run's folder, at any depth: a run that came from someone else could make
    this one write, or delete, wherever it leads."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path):
                raise BadInput(
                    f"{path} is a link, and nothing is written through links; put the folder or file itself there, or "
                    "choose another --name."
                )
        folders[:] = [name for name in folders if name != "wandb"]  # W&B makes links of its own in there


def ray_token(scratch: Path) -> None:
    """See that Ray's token exists, that only this user can read it, and that Ray finds it.

    Whoever has it can run code in this user's clusters, and Ray itself makes it readable by everyone.
    scratch: a closed folder, for where nothing can be kept in the home.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    chosen, home = os.environ.get("RAY_AUTH_TOKEN_PATH"), os.path.expanduser("~")
    places = [Path(chosen)] if chosen else [Path(home, ".ray", "auth_token"), scratch / "auth_token"]
    for path in places if os.path.isabs(chosen or home) else places[-1:]:
        with contextlib.suppress(OSError):  # of the last, Ray says what is wrong with it
            _token(path)
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
            return


def _token(path: Path) -> None:
    """Raises OSError where it can neither be made nor read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        whole = path.with_name(f"{path.name}-{os.getpid()}")
        try:
            with os.fdopen(os.open(whole, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(whole, path)
        finally:
            whole.unlink(missing_ok=True)
    if path.stat().st_uid == user() and path.stat().st_mode & 0o077:
        path.chmod(0o600)
    path.open().close()
