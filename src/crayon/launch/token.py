"""Ray's token: whoever has it can run code in this user's clusters."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from crayon.system.files import user


def ray_token(scratch: Path) -> None:
    """See that it exists, that only this user can read it (Ray itself makes it readable by everyone), and that Ray
    finds it.

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
