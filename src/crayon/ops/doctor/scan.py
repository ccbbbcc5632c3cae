"""Placeholders and secrets in a YAML file, with their lines. What looks like a secret is never repeated."""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml

from crayon.system.secrets import PASSWORD, assignments

PLACEHOLDER = re.compile(r"<(?![\s<=])[^<>\n]*[^\s<>-]>")
SECRET_NAME = re.compile(
    r"(?i)(?<!public)(?<!public_)(key|key_?id|token|password|passwd|pwd|passphrase|secret|credentials?|"
    r"connection[-_]?string)$"
)
"""Names of YAML keys and variables that may hold a secret: more than an option of ours could have."""


class Value(NamedTuple):
    """A scalar of the file."""

    path: str
    """Its keys, with dots."""
    text: str
    line: int
    literal: bool
    """Whether it is a string or a number, as a secret would be."""


def values(text: str) -> list[Value]:
    """All scalars, each once, however often an anchor repeats it. Raises yaml.YAMLError."""
    found: list[Value] = []
    seen: set[int] = set()

    def walk(at: yaml.Node | None, path: str) -> None:
        if at is None or id(at) in seen:
            return
        seen.add(id(at))
        if isinstance(at, yaml.MappingNode):
            named = {k.value: v for k, v in at.value if isinstance(k, yaml.ScalarNode)}
            for key, inner in at.value:
                name = str(getattr(key, "value", ""))
                # Kubernetes writes variables as {name: NAME, value: VALUE}.
                if name == "value" and isinstance(named.get("name"), yaml.ScalarNode):
                    name = named["name"].value
                walk(inner, f"{path}.{name}" if path else name)
        elif isinstance(at, yaml.SequenceNode):
            for inner in at.value:
                walk(inner, path)
        else:
            literal = at.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int")
            found.append(Value(path, at.value, at.start_mark.line + 1, literal))

    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        walk(document, "")
    return found


def placeholders(found: list[Value]) -> dict[str, list[int]]:
    """The lines of each `<...>` that is not filled in."""
    lines: dict[str, list[int]] = {}
    for value in found:
        for match in PLACEHOLDER.finditer(value.text):
            lines.setdefault(match[0], []).append(value.line)
    return lines


def secrets(text: str, values: list[Value]) -> list[str]:
    """`line 3 (WANDB_API_KEY)` for each value with a secret's name and each password in a URL, in comments too."""
    hits: dict[int, str] = {}
    for value in values:
        name = value.path.rpartition(".")[2]
        data = re.fullmatch(r"(.*\.)?(stringData|data)\.[^.]+", value.path)
        if value.literal and (_holds(name, value.text) or (data and _is_literal(value.text))):
            hits.setdefault(value.line, name)
    for number, line in enumerate(text.splitlines(), 1):
        for name, value in assignments(line):
            if _holds(name, value):
                hits.setdefault(number, name)
        if PASSWORD.search(line):
            hits.setdefault(number, "a password in an address")
    return [f"line {number} ({what})" for number, what in sorted(hits.items())]


def _holds(name: str, value: str) -> bool:
    """Whether `name` is a secret's, and `value` may be one. Kubernetes calls its labels' names "key"."""
    return bool(SECRET_NAME.search(name)) and name.lower() != "key" and _is_literal(value)


def _is_literal(text: str) -> bool:
    """Neither empty, nor a placeholder, a path, a variable, nor a word that says that there is none."""
    text = text.strip()
    return len(text) >= 6 and not re.match(r"[<~/.$%]|file://", text) and "<" not in text
