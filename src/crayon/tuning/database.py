"""Where a study is stored: a SQLite file, or a database that a team shares."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from crayon.errors import BadInput, RunFailed
from crayon.system import secrets
from crayon.system.host import DISTRIBUTION
from crayon.system.secrets import shown

DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "MySQLdb")}
"""The modules that each kind of database may be reached by; the first are what the extras of these names install.
Which of them SQLAlchemy takes by itself depends on its version."""
LOCK_SECONDS = 10.0
"""How long a write waits for another process that holds a SQLite file."""


def open_storage(url: str) -> BaseStorage:
    """The storage at `url`. A connection that the database has dropped between two epochs is made anew."""
    check_url(url)
    scheme = urlsplit(url).scheme
    found = [name for name in DRIVERS.get(scheme, ()) if importlib.util.find_spec(name)]
    if found:
        url = f"{scheme}+{found[0].lower()}{url[len(scheme) :]}"
    file = url.startswith("sqlite:")
    options = {"connect_args": {"timeout": LOCK_SECONDS}} if file else {"pool_pre_ping": True}
    return RDBStorage(url, engine_kwargs=options)


def check_url(url: str) -> None:
    """Raise BadInput where `url` holds a password, or names a storage from which code could be loaded."""
    secrets.check_value("--study", url)
    if urlsplit(url).scheme.startswith("redis"):
        raise BadInput(
            f"--study {shown(url)}: Optuna keeps pickles in Redis, and whoever writes there could run code here; use "
            "PostgreSQL, MySQL or a SQLite file."
        )


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """What goes wrong with the storage at `url` becomes BadInput; RunFailed where its disk is full."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        if "is full" in str(error) or "No space left" in str(error):
            text = f"The study {shown(url)} can't be written: the disk is full; the same command goes on with it."
            raise RunFailed(text) from None
        raise BadInput(_sentence(url, error)) from None
    except optuna.exceptions.UpdateFinishedTrialError:
        raise BadInput(
            f"Another program ended a trial that this one runs, in the study {shown(url)}; the same command goes on "
            "without it."
        ) from None
    except ImportError as error:  # the database's driver
        scheme, text = urlsplit(url).scheme, str(error.__cause__ or error).split("\n")[0].rstrip(".")
        install = f"; pip install '{DISTRIBUTION}[{scheme}]', or uv sync --extra {scheme}" * (
            scheme in DRIVERS
        )
        raise BadInput(f"--study {shown(url)} needs a package that isn't there ({text}){install}.") from None


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
