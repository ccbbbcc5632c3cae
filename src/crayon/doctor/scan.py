"""Placeholders and secrets in a YAML file, with their lines. What looks like a secret is never repeated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import yaml

PLACEHOLDER = re.compile(r"<(?![\s<=])[^<>\n]*[^\s<>-]>")
SECRET_NAME = re.compile(
    r"(?i)(?<!public)(?<!public_)(key|key_?id|token|password|passwd|passphrase|secret|credentials?)$"
)
ASSIGNED = re.compile(
    r"(?i)\b([a-z][a-z0-9_]*(?:key|key_?id|token|password|passwd|secret))\s*=\s*[\"']?(?P<value>[^\s\"',;]+)"
)
SHAPES = {
    "an AWS key id": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a W&B key": re.compile(r"\bwandb_v\d_\w{20,}|(?<![@/\w-])(?<!commit )[0-9a-f]{40}(?![\w-])"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "an Azure account key": re.compile(r"AccountKey=[A-Za-z0-9+/]{40,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a password in an address": re.compile(r"://[^/\s:@<>$]+:[^/\s@<>$]+@"),
}


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


def secrets(text: str, found: list[Value]) -> list[str]:
    """`line 3 (WANDB_API_KEY)` for each value that looks like a secret, in comments too."""
    hits: dict[int, str] = {}
    for value in found:
        name = value.path.rpartition(".")[2]
        named = SECRET_NAME.search(name) and name.lower() != "key"  # Kubernetes calls labels so
        if value.literal and named and _is_literal(value.text):
            hits.setdefault(value.line, name)
        if re.fullmatch(r"(.*\.)?(stringData|data)\.[^.]+", value.path) and _is_literal(value.text):
            hits.setdefault(value.line, name)
    for number, line in enumerate(text.splitlines(), 1):
        for what in _in_line(line):
            hits.setdefault(number, what)
    return [f"line {number} ({what})" for number, what in sorted(hits.items())]


def _in_line(line: str) -> Iterator[str]:
    for what, shape in SHAPES.items():
        if shape.search(line):
            yield what
    for match in ASSIGNED.finditer(line):
        if _is_literal(match["value"]):
            yield match[1]


def _is_literal(text: str) -> bool:
    """Neither empty, nor a placeholder, a path, a variable, nor a word that says that there is none."""
    text = text.strip()
    return len(text) >= 6 and not re.match(r"[<~/.$%]|file://", text) and "<" not in text
