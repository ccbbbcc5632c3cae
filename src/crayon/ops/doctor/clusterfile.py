"""A cluster file before `ray up` or `kubectl apply` sees it: what they would take, and the run would not."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from crayon.errors import BadInput
from crayon.ops.doctor.findings import Finding

IMAGE = re.compile(r"(?:^|/)ray(?:-ml|-llm)?:(?P<tag>[\w.-]+)")
KUBERAY = "ray.io/"
PLACEHOLDER = re.compile(r"<(?![\s<=])[^<>\n]*[^\s<>-]>")


def read(path: Path) -> str:
    """The file's text. Raises BadInput where it can't be read."""
    try:
        return path.read_text()
    except FileNotFoundError:
        raise BadInput(f"There is no file {path}; give the path of a cluster file.") from None
    except IsADirectoryError:
        raise BadInput(f"{path} is a folder; give the path of a cluster file in it.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not a text file; give the path of a cluster file.") from None
    except OSError as error:
        raise BadInput(f"{path} can't be read ({error.strerror}).") from None


def check(text: str) -> Iterator[Finding]:
    """Placeholders, the images' versions, and whether the cluster asks for a token."""
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not YAML"
        where = f" in line {mark.line + 1}" if mark else ""
        yield Finding("file", "error", f"can't be parsed{where}: {what}", "mend the YAML")
        return
    kinds = [d for d in documents if isinstance(d, dict)]
    kube = any(str(d.get("apiVersion", "")).startswith(KUBERAY) for d in kinds)
    if kube:
        yield Finding("file", "ok", f"for KubeRay: {', '.join(str(d.get('kind')) for d in kinds)}")
    elif len(kinds) == len(documents) == 1 and "provider" in kinds[0]:
        yield Finding("file", "ok", f"for ray up: cluster {kinds[0].get('cluster_name')}")
    else:
        what = "is neither for ray up (it has no `provider`) nor for KubeRay (no apiVersion ray.io/v1)"
        yield Finding("file", "error", what, "begin with one of the files in cluster/")
    yield _placeholders(text)
    scalars = [scalar for document in documents for scalar in _scalars(document)]
    yield from _images(scalars)
    yield _token(scalars)


def _scalars(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(its keys with dots, text) of every scalar."""
    if isinstance(value, dict):
        for key, inner in value.items():
            # Kubernetes writes variables as {name: NAME, value: VALUE}.
            yield from _scalars(
                inner, f"{path}.{value['name'] if key == 'value' and 'name' in value else key}"
            )
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner, path)
    else:
        yield path, str(value)


def _placeholders(text: str) -> Finding:
    """What of the form `<...>` is not filled in, comments aside."""
    lines: dict[str, list[int]] = {}
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken):
            for match in PLACEHOLDER.finditer(token.value):
                lines.setdefault(match[0], []).append(token.start_mark.line + 1)
    if not lines:
        return Finding("placeholders", "ok", "none left")
    listed = ", ".join(
        f"{what} (line {', '.join(map(str, dict.fromkeys(where)))})" for what, where in lines.items()
    )
    return Finding("placeholders", "error", f"not filled in: {listed}", "write your own values there")


def _images(scalars: list[tuple[str, str]]) -> Iterator[Finding]:
    images = dict.fromkeys(text for path, text in scalars if path.endswith(".image"))
    if not images:
        needed = f"none: the nodes need Python {platform.python_version()} and the Ray of this machine"
        yield Finding("image", "note", needed)
    for image in images:
        yield _image(image)
    for version in dict.fromkeys(text for path, text in scalars if path.endswith(".rayVersion")):
        if any((tag := _tag(i)) and not tag.startswith(version) for i in images):
            what = f"rayVersion {version} is not the images' Ray"
            yield Finding("rayVersion", "error", what, "write the version of the image there")


def _image(image: str) -> Finding:
    from importlib.metadata import version

    tag, ray, python = _tag(image), version("ray"), ".".join(platform.python_version_tuple()[:2])
    if tag is None:
        return Finding("image", "note", f"{image}: its Ray and Python can't be told from its name")
    versions = re.match(r"(\d+\.\d+\.\d+)(?:[.\w]*?)(?:-py(\d)(\d+))?(?:-|$)", tag)
    if not versions:
        return Finding(
            "image",
            "warning",
            f"{image} names no version of Ray",
            f"rayproject/ray:{ray}-py{python.replace('.', '')}",
        )
    theirs = f"{versions[2]}.{versions[3]}" if versions[2] else None
    wrong = [f"Ray {versions[1]} (here {ray})"] if versions[1] != ray else []
    wrong += [f"Python {theirs} (here {python})"] if theirs and theirs != python else []
    if wrong:
        return Finding(
            "image",
            "error",
            f"{image} has {', '.join(wrong)}",
            f"rayproject/ray:{ray}-py{python.replace('.', '')}, or the image's versions here",
        )
    if not theirs:
        return Finding(
            "image",
            "warning",
            f"{image} doesn't say which Python it has",
            f"add -py{python.replace('.', '')}",
        )
    return Finding("image", "ok", f"{image}, as here (Ray {ray}, Python {python})")


def _tag(image: str) -> str | None:
    match = IMAGE.search(image)
    return match["tag"] if match else None


def _token(scalars: list[tuple[str, str]]) -> Finding:
    names = (".RAY_AUTH_MODE", ".authOptions.mode")
    if any("RAY_AUTH_MODE=token" in t or (t == "token" and p.endswith(names)) for p, t in scalars):
        return Finding("token in file", "ok", "the cluster asks for a token")
    return Finding(
        "token in file",
        "warning",
        "no RAY_AUTH_MODE=token: whoever reaches the cluster's ports can run code",
        "set it for head and workers, as in cluster/aws.yaml (KubeRay: authOptions: {mode: token})",
    )
