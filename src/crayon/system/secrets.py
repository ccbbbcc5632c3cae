"""Secrets in places where others can read them: command lines, a job's runtime_env and metadata.

They belong where their own tools keep them, and are refused anywhere else. No sentence that is made here repeats one.
What is recognised here, `doctor.scan` recognises in cluster files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from crayon.errors import BadInput

AWS = "~/.aws/credentials or the instance's role"
DATABASE = "~/.pgpass or PGPASSWORD for PostgreSQL, ?read_default_file=~/.my.cnf for MySQL"
GOOGLE = "`gcloud auth application-default login` or the instance's service account"
RAY = "~/.ray/auth_token (`ray get-auth-token --generate`)"
WANDB = "~/.netrc (`wandb login`)"

NAME = re.compile(
    r"(?i)(?:api|access|account|secret|storage|wandb|private|auth)[-_.]?key$|secret$|token$|passw(?:or)?d$|pwd$|"
    r"credentials?$|connection[-_]?string$|secret_access_key$"
)
"""Names of variables, options and YAML keys that are there to hold a secret."""
_LEAKS_NOTHING = re.compile(
    r"<.*>|\$.*|[~./].*|(?i:true|false|null|none|required|optional)?|\d{1,5}", re.DOTALL
)
"""What may stand where a secret would: a placeholder, a variable, a path, a switch."""
_QUERY = {
    *("access_key", "access_token", "api_key", "apikey", "key", "passwd", "password", "secret", "secret_key"),
    *("sig", "token"),
}
_KNOWN = (
    (re.compile(r"(?:local-)?[0-9a-f]{40}|wandb_v\d_\w{20,}"), True, "a W&B API key", WANDB),
    (re.compile(r"\bwandb_v\d_\w{20,}"), False, "a W&B API key", WANDB),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), False, "an AWS access key", AWS),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), False, "a Hugging Face token", "`hf auth login`"),
    (re.compile(r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}"), False, "a Google key", GOOGLE),
    (re.compile(r"\"private_key\"|service_account\""), False, "a Google service account's key", GOOGLE),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"), False, "a private key", "a file that only you can read"),
    (re.compile(r"\bAccountKey=[\w+/]{20,}"), False, "an Azure storage key", "`az login`"),
    (
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
        False,
        "a GitHub token",
        "`gh auth login`",
    ),
)
"""(pattern, whether it is the whole value, what it is, where it belongs). A W&B key looks like a commit's hash, which a
path may well hold."""
_IN_TEXT = (
    (re.compile(r"(?<![@/\w-])(?<!commit )[0-9a-f]{40}(?![\w-])"), "a W&B API key"),
    (re.compile(r"://[^/\s:@<>$]+:[^/\s@<>$]+@"), "a password in an address"),
)
"""What can only be told by what stands around it."""


def check_arguments(argv: Sequence[str]) -> None:
    """Raises BadInput where a word of the command line is or holds a secret."""
    option = ""
    for word in argv:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if name:
            check_value("The command line", name.lstrip("-"))
            option = name
            if NAME.search(name):
                raise BadInput(f"There is no option {name}: {_sentence('secret', _home(name))}")
        if not name or equals:
            place = option or "The command line"
            check_value(place, value)
            check_value(place, value.partition("=")[2])


def check_value(option: str, value: str) -> None:
    """Raises BadInput where the value of `option` is or holds a secret."""
    if hit := found(value):
        what, home = hit
        raise BadInput(f"{option} holds {what}: {_sentence(what.partition(' ')[2], home)}")


def _sentence(what: str, home: str) -> str:
    return (
        f"a command line is read by others, in the list of processes and in the shell's history. Leave the {what} out, "
        f"keep it in {home}, and replace it by a new one, since this one may be known by now."
    )


def check_job(environ: Mapping[str, str] = os.environ) -> None:
    """Raises BadInput where the job that this process belongs to was submitted with a secret (`ray job submit`)."""
    try:
        job = json.loads(environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    except ValueError:
        return
    if isinstance(job, dict):
        check_runtime_env(job.get("runtime_env"))
        _check_shown("The job's metadata", job.get("metadata"))


def check_runtime_env(runtime_env: Any) -> None:
    """Raises BadInput where it holds a secret. Strings are taken for JSON."""
    if isinstance(runtime_env, str):
        try:
            runtime_env = json.loads(runtime_env)
        except ValueError:
            return
    _check_shown("runtime_env", runtime_env)


def _check_shown(place: str, content: Any) -> None:
    for name, value in _leaves(content):
        if _literal(name, value) or found(value):
            raise BadInput(
                f"{place} holds a secret ({name}): Ray shows it to whoever reaches the dashboard, and writes it to "
                f"its logs. Leave it out, keep it on the nodes in {_home(name)}, and replace it by a new one, since "
                "this one may be known by now."
            )


def in_text(text: str) -> Iterator[str]:
    """What looks like a secret in running text, such as a line of a file."""
    for pattern, whole, what, _ in _KNOWN:
        if not whole and pattern.search(text):
            yield what
    for pattern, what in _IN_TEXT:
        if pattern.search(text):
            yield what


def assignments(text: str) -> list[tuple[str, str]]:
    """(name, value) of `NAME=value`, `NAME = value` and `--name=value` in a shell command or a comment."""
    return re.findall(r"(?<!\w)([A-Za-z][\w-]*)\s*=\s*[\"']?([^\s;,'\"&|]*)", text)


def shown(url: str) -> str:
    """The URL without a password."""
    url = re.sub(r"://([^:/@]*):[^/]*@", r"://\1@", url)
    return re.sub(rf"(?i)\b({'|'.join(sorted(_QUERY, key=len, reverse=True))})=[^&]*", r"\1=...", url)


# Recognising


def found(value: str) -> tuple[str, str] | None:
    """(what `value` is or holds, where that belongs), if it is or holds a secret."""
    for pattern, whole, what, home in _KNOWN:
        if pattern.fullmatch(value) if whole else pattern.search(value):
            return what, home
    if re.fullmatch(r"[A-Za-z0-9/+]{40}", value) and _changes(value) >= 14:
        return "an AWS secret key", AWS
    if "://" in value:
        try:
            parts = urlsplit(value)
            password, query = parts.password, parse_qsl(parts.query)
        except ValueError:  # no URL after all
            password, query = None, []
        if password or any(key.lower() in _QUERY for key, _ in query):
            home = AWS if value.startswith("s3:") else GOOGLE if value.startswith("gs:") else DATABASE
            return "a password", f"the place where its own tools look ({home})"
    for name, secret in _held():
        if value == secret or (len(secret) >= 16 and secret in value):
            return f"the content of {name}", _home(name)
    return None


def _changes(text: str) -> int:
    """How often neighbours are of different kinds: often in random text, rarely in a path."""
    kinds = [(c.isupper(), c.islower(), c.isdigit()) for c in text]
    return sum(a != b for a, b in pairwise(kinds))


def _held() -> Iterator[tuple[str, str]]:
    """(name, secret) of those that this process knows from its environment, and Ray's token."""
    for name, value in os.environ.items():
        if NAME.search(name) and len(value) >= 8 and not _LEAKS_NOTHING.fullmatch(value):
            yield name, value
    token = Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"))
    try:
        yield "Ray's token", token.read_text().strip() or "\0"
    except (OSError, ValueError):
        return


def _literal(name: str, value: str) -> bool:
    """Whether `name` is a secret's and `value` may be one."""
    return bool(NAME.search(name)) and not _LEAKS_NOTHING.fullmatch(value.strip())


def _home(name: str) -> str:
    for part, home in (
        ("wandb", WANDB),
        ("aws", AWS),
        ("ray", RAY),
        ("google", GOOGLE),
        ("azure", "`az login`"),
    ):
        if part in name.lower():
            return home
    return (
        DATABASE
        if re.search(r"(?i)passw|pwd", name)
        else "the place where its own tool looks (such as ~/.netrc)"
    )


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, str(key))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _leaves(value, name)
    elif isinstance(content, str):
        yield name, content
