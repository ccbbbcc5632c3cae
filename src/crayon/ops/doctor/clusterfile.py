"""A cluster file before `ray up` or `kubectl apply` sees it: what they would take, and the run would not."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from crayon.errors import BadInput
from crayon.ops.doctor.findings import Finding, error, note, ok, warning

IMAGE = re.compile(r"(?:^|/)ray(?:-ml|-llm)?:(?:(\d+\.\d+\.\d+)[.\w]*)?(?:-py(\d)(\d+))?")
"""Of an image's name: the Ray and the Python in it, where it tells them."""
PLACEHOLDER = re.compile(r"<(?![\s<=])[^<>\n]*[^\s<>-]>")


def read(path: Path) -> str:
    """The file's text. Raises BadInput where it can't be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or "it is no text file"
        raise BadInput(f"{path} can't be read ({why}); give the path of a cluster file.") from None


def check(text: str) -> Iterator[Finding]:
    """Placeholders, the images' versions, and whether the cluster asks for a token."""
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as problem:
        mark, what = getattr(problem, "problem_mark", None), getattr(problem, "problem", None)
        where = f" in line {mark.line + 1}" if mark else ""
        yield error("file", f"can't be parsed{where}: {what or 'not YAML'}", "mend the YAML")
        return
    kinds = [d for d in documents if isinstance(d, dict)]
    if any(str(d.get("apiVersion", "")).startswith("ray.io/") for d in kinds):
        yield ok("file", f"for KubeRay: {', '.join(str(d.get('kind')) for d in kinds)}")
    elif len(kinds) == len(documents) == 1 and "provider" in kinds[0]:
        yield ok("file", f"for ray up: cluster {kinds[0].get('cluster_name')}")
    elif len(kinds) == len(documents) == 1 and {"resources", "run"} <= kinds[0].keys():
        yield ok("file", f"for SkyPilot: task {kinds[0].get('name')}")
    else:
        what = (
            "is neither for ray up (it has no `provider`) nor for KubeRay (no apiVersion ray.io/v1) nor for SkyPilot "
            "(no `resources` and `run`)"
        )
        yield error("file", what, "begin with one of the files in cluster/")
    yield _placeholders(text)
    scalars = [scalar for document in documents for scalar in _scalars(document)]
    yield from _images(scalars)
    names = (".RAY_AUTH_MODE", ".authOptions.mode")
    if any("RAY_AUTH_MODE=token" in t or (t == "token" and p.endswith(names)) for p, t in scalars):
        yield ok("token in file", "the cluster asks for a token")
    else:
        yield warning(
            "token in file",
            "no RAY_AUTH_MODE=token: whoever reaches the cluster's ports can run code",
            "set it for head and workers, as in cluster/aws.yaml (KubeRay: authOptions: {mode: token})",
        )


def _scalars(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(its keys with dots, text) of every scalar."""
    if isinstance(value, dict):
        for key, inner in value.items():
            # Kubernetes writes variables as {name: NAME, value: VALUE}.
            name = value["name"] if key == "value" and "name" in value else key
            yield from _scalars(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner, path)
    else:
        yield path, str(value)


def _placeholders(text: str) -> Finding:
    """What of the form `<...>` is not filled in, comments aside."""
    found = [
        f"{match[0]} (line {token.start_mark.line + 1})"
        for token in yaml.scan(text)
        if isinstance(token, yaml.ScalarToken)
        for match in PLACEHOLDER.finditer(token.value)
    ]
    if not found:
        return ok("placeholders", "none left")
    listed = ", ".join(dict.fromkeys(found))
    return error("placeholders", f"not filled in: {listed}", "write your own values there")


def _images(scalars: list[tuple[str, str]]) -> Iterator[Finding]:
    ray, (major, minor, _) = version("ray"), platform.python_version_tuple()
    images = dict.fromkeys(text for path, text in scalars if path.endswith(".image"))
    if not images:
        yield note("image", f"none: the nodes need Python {major}.{minor} and Ray {ray}")
    here = f"rayproject/ray:{ray}-py{major}{minor}"
    for image in images:
        found = IMAGE.search(image)
        if not found:
            yield note("image", f"{image}: its Ray and Python can't be told from its name")
        elif found[1] not in (None, ray) or found.groups()[1:] not in ((None, None), (major, minor)):
            text = f"{image} is not of Ray {ray} and Python {major}.{minor}, as here"
            yield error("image", text, f"{here}, or the image's versions here")
        elif None in found.groups():
            yield warning("image", f"{image} doesn't say which Ray and Python it has", here)
        else:
            yield ok("image", f"{image}, as here")
