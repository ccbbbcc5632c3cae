"""Secrets where others can read them: command lines, a job's runtime_env and metadata.

They are recognised by the name that they are given to, and in URLs, and no sentence that is made here repeats one. A
value alone is never judged: a W&B key looks like a commit's hash.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crayon.errors import BadInput

NAME = re.compile(
    r"(?i)(?:api|access|account|secret|storage|wandb|private|auth)[-_.]?key$|secret$|token$|passw(?:or)?d$|pwd$|"
    r"credentials?$|connection[-_]?string$"
)
"""Names of variables, options and YAML keys that are there to hold a secret."""
_HARMLESS = re.compile(r"<.*>|\$.*|[~./].*|(?i:true|false|null|none|required|optional)?|\d{1,5}", re.DOTALL)
"""What may stand where a secret would: a placeholder, a variable, a path, a switch."""
_QUERY = "access_key|access_token|api_key|apikey|secret_key|passwd|password|secret|token|key|sig"
PASSWORD = re.compile(rf"(?i)://[^/\s:@]*:(?![<$])[^/\s@]+@|://\S*[?&](?:{_QUERY})=[^&\s<$]")
"""A password, or a parameter that is a secret, in a URL."""
_HOMES = {
    "wandb": "~/.netrc (`wandb login`)",
    "aws": "~/.aws/credentials or the instance's role",
    "s3:": "~/.aws/credentials or the instance's role",
    "gs:": "`gcloud auth application-default login` or the instance's service account",
    "ray": "~/.ray/auth_token (`ray get-auth-token --generate`)",
    "postgresql": "~/.pgpass or PGPASSWORD",
    "mysql": "?read_default_file=~/.my.cnf",
}
"""Where a secret belongs, by a part of its option's name or the beginning of its URL."""


def check_arguments(argv: Sequence[str]) -> None:
    """Raise BadInput where a command line has an option or `NAME=value` for a secret, or a password in a URL."""
    option = "The command line"
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            option = name
            if NAME.search(name):
                raise BadInput(f"There is no option {name}: {_advice('secret', name)}")
        elif equals and is_secret(name, value):
            raise BadInput(f"{option} holds a secret: {_advice('secret', name)}")
        check_value(option, word)


def check_value(option: str, value: str) -> None:
    """Raise BadInput where the value of `option` is a URL with a password."""
    if PASSWORD.search(value):
        raise BadInput(f"{option} holds a password: {_advice('password', value)}")


def check_job(environ: Mapping[str, str] = os.environ) -> None:
    """Raise BadInput where the job that this process belongs to was submitted with a secret (`ray job submit`)."""
    try:
        job = json.loads(environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    except ValueError:
        return
    check_shown("The job", [job.get("runtime_env"), job.get("metadata")])


def check_shown(place: str, content: Any) -> None:
    """Raise BadInput where `content`, which Ray shows, holds a secret under a name that tells it, or in a URL."""
    for name, value in _leaves(content):
        if is_secret(name, value) or PASSWORD.search(value):
            raise BadInput(
                f"{place} holds a secret ({name}): Ray shows it to whoever reaches the dashboard, and writes it to "
                f"its logs. Leave it out, keep it on the nodes in {_home(name)}, and replace it by a new one, since "
                "this one may be known by now."
            )


def is_secret(name: str, value: str) -> bool:
    """Whether `name` is a secret's and `value` may be one, and no placeholder, path or switch."""
    return bool(NAME.search(name)) and not _HARMLESS.fullmatch(value.strip())


def shown(url: str) -> str:
    """The URL without a password.

    >>> shown("mysql://me:hunter2@host/db?passwd=hunter2&x=1")
    'mysql://me@host/db?passwd=...&x=1'
    """
    url = re.sub(r"://([^:/@]*):[^/]*@", r"://\1@", url)
    return re.sub(rf"(?i)\b({_QUERY})=[^&]*", r"\1=...", url)


def _advice(what: str, place: str) -> str:
    return (
        f"a command line is read by others, in the list of processes and in the shell's history. Leave the {what} out, "
        f"keep it in {_home(place)}, and replace it by a new one, since this one may be known by now."
    )


def _home(name: str) -> str:
    homes = (home for part, home in _HOMES.items() if part in name.lower())
    return next(homes, "the place where its own tool looks (such as ~/.netrc)")


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value, name)
    elif isinstance(content, str):
        yield name, content
