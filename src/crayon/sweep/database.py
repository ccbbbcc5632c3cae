"""Where a study is stored: a SQLite file, or a database that a team shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from crayon import secrets
from crayon.errors import BadInput
from crayon.secrets import shown

LOCK_SECONDS = 10.0
"""How long a write waits for another process that holds a SQLite file."""


def open_storage(url: str) -> BaseStorage:
    """The storage at `url`. A connection that the database has dropped between two epochs is made anew."""
    if url.startswith("sqlite:"):
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    if urlsplit(url).scheme.startswith("redis"):
        return get_storage(url)
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def check_url(url: str) -> None:
    """Raises BadInput where `url` holds a password: it would end up in process lists, shell histories and reports."""
    secrets.check_value("--study", url)


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """What goes wrong with the storage at `url` becomes BadInput."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise BadInput(_sentence(url, error)) from None
    except ImportError as error:  # the database's driver
        raise BadInput(f"--study {shown(url)} needs a package that isn't there ({error}).") from None


def _sentence(url: str, error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(getattr(cause, "orig", None) or cause).split("\n")[0].rstrip(".")
    if isinstance(cause, ArgumentError):
        return f"--study {shown(url)} is no database URL, such as postgresql://host/studies or sqlite:///file.db."
    if "locked" in text:
        return f"The study {shown(url)} is locked by another process; end that one, or choose another --name."
    if "not a database" in text or "malformed" in text or "no such table" in text:
        return (
            f"The study {shown(url)} is damaged ({text}); put a copy in its place, or choose another --name."
        )
    return f"The study {shown(url)} can't be used ({text})."
