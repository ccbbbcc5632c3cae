"""A cluster file before `ray up` or `kubectl apply` sees it."""

from __future__ import annotations

import copy
import logging
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from crayon.errors import BadInput, first_line
from crayon.ops.doctor import scan
from crayon.ops.doctor.findings import Finding, count

IMAGE = re.compile(r"(?:^|/)ray(?:-ml|-llm)?:(?P<tag>[\w.-]+)")
KUBERAY = "ray.io/"


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
    """Everything that can be said of the file without starting it."""
    try:
        found = scan.values(text)
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not YAML"
        where = f" in line {mark.line + 1}" if mark else ""
        yield Finding("file", "error", f"can't be parsed{where}: {what}", "mend the YAML")
        return
    kube = [d for d in documents if isinstance(d, dict) and str(d.get("apiVersion", "")).startswith(KUBERAY)]
    config = documents[0] if len(documents) == 1 and isinstance(documents[0], dict) else {}
    if kube:
        kinds = ", ".join(str(d.get("kind")) for d in documents if isinstance(d, dict))
        yield Finding("file", "ok", f"for KubeRay: {kinds}")
    elif "provider" in config:
        yield _schema(config)
    else:
        yield Finding(
            "file",
            "error",
            "is neither for ray up (it has no `provider`) nor for KubeRay (no apiVersion ray.io/v1)",
            "begin with one of the files in cluster/",
        )
    yield _placeholders(found)
    yield _secrets(text, found)
    if not kube and "provider" not in config:
        return
    yield from _images(found, kube)
    yield _auth(found)
    if kube:
        yield from _kube_facts(kube, found)
    else:
        yield from _dashboard(config)
        yield from _workers(config)
        yield from _sources(config)


def _schema(config: dict[str, Any]) -> Finding:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    # It tells of defaults that it fills in.
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)
    provider = config["provider"].get("type") if isinstance(config["provider"], dict) else None
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        # Its own message repeats the value, which may be a secret.
        where = ".".join(map(str, error.absolute_path)) or "the file"
        rule = error.message if error.validator in ("required", "additionalProperties") else ""
        text = first_line(rule or f"breaks the rule {error.validator}: {error.validator_value}")
        return Finding(
            "file", "error", f"Ray refuses it: {where}: {text}", "see Ray's cluster YAML reference"
        )
    except Exception as error:
        text = f"missing {error}" if isinstance(error, KeyError) else type(error).__name__
        return Finding("file", "error", f"Ray refuses it: {text}", "see Ray's cluster YAML reference")
    return Finding(
        "file", "ok", f"Ray's schema accepts it; cluster {config.get('cluster_name')}, provider {provider}"
    )


def _placeholders(found: list[scan.Value]) -> Finding:
    lines = scan.placeholders(found)
    if not lines:
        return Finding("placeholders", "ok", "none left")
    listed = ", ".join(
        f"{what} (line {', '.join(map(str, dict.fromkeys(where)))})" for what, where in lines.items()
    )
    return Finding("placeholders", "error", f"not filled in: {listed}", "write your own values there")


def _secrets(text: str, found: list[scan.Value]) -> Finding:
    hits = scan.secrets(text, found)
    if not hits:
        return Finding("secrets", "ok", "none found in the file")
    return Finding(
        "secrets",
        "error",
        f"what looks like a secret: {', '.join(hits)}",
        "take it out, and revoke it if anyone saw the file; keys belong into roles, ~/.netrc or a Kubernetes Secret",
    )


def _images(found: list[scan.Value], kube: list[dict[str, Any]]) -> Iterator[Finding]:
    images = dict.fromkeys(v.text for v in found if v.path.rpartition(".")[2] == "image")
    if not images:
        yield Finding(
            "image",
            "note",
            f"none: the nodes need Python {platform.python_version()} and the Ray of this machine",
        )
    for image in images:
        yield _image(image)
    for document in kube:
        version = str((document.get("spec") or {}).get("rayVersion") or _nested(document, "rayVersion") or "")
        if version and any((tag := _tag(i)) and not tag.startswith(version) for i in images):
            yield Finding(
                "rayVersion",
                "error",
                f"rayVersion {version} is not the images' Ray",
                "write the version of the image there",
            )


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


def _auth(found: list[scan.Value]) -> Finding:
    asked = any("RAY_AUTH_MODE=token" in v.text for v in found) or any(
        v.path.endswith(("RAY_AUTH_MODE", "authOptions.mode")) and v.text == "token" for v in found
    )
    if asked:
        return Finding("token in file", "ok", "the cluster asks for a token")
    return Finding(
        "token in file",
        "warning",
        "no RAY_AUTH_MODE=token: whoever reaches the cluster's ports can run code",
        "set it for head and workers, as in cluster/aws.yaml (KubeRay: authOptions: {mode: token})",
    )


def _dashboard(config: dict[str, Any]) -> Iterator[Finding]:
    from crayon.ops.doctor.network import is_loopback

    start = " ".join(map(str, config.get("head_start_ray_commands") or []))
    match = re.search(r"--dashboard-host[= ]+([^\s;'\"]+)", start)
    host = match[1] if match else "127.0.0.1"
    if is_loopback(host):
        yield Finding("dashboard host", "ok", f"{host}, reached through `ray dashboard`")
    else:
        yield Finding(
            "dashboard host",
            "warning",
            f"{host}: other machines can reach it and submit jobs",
            "--dashboard-host=127.0.0.1, and `ray dashboard` to reach it",
        )


def _workers(config: dict[str, Any]) -> Iterator[Finding]:
    provider = config["provider"] if isinstance(config["provider"], dict) else {}
    if provider.get("type") == "local":
        ips = provider.get("worker_ips") or []
        yield Finding(
            "workers", "note", f"{count(len(ips), 'machine')} beside the head; none is started or ended"
        )
        return
    idle = config.get("idle_timeout_minutes", 5)
    for name, kind in (config.get("available_node_types") or {}).items():
        if name == config.get("head_node_type") or not isinstance(kind, dict):
            continue
        least, most = kind.get("min_workers", 0), kind.get("max_workers", config.get("max_workers", 2))
        spot = "spot" if _is_spot(kind.get("node_config")) else "on demand"
        starts = (
            "none runs before it is asked for (ray up --min-workers)" if not least else f"{least} always run"
        )
        yield Finding(
            "workers", "note", f"{name}: {least} to {most}, {spot}; {starts}; ended after {idle} idle minutes"
        )


def _is_spot(config: Any) -> bool:
    if isinstance(config, dict):
        return any(
            (k == "preemptible" and v is True) or (isinstance(v, str) and v.lower() == "spot") or _is_spot(v)
            for k, v in config.items()
        )
    return isinstance(config, list) and any(map(_is_spot, config))


def _sources(config: dict[str, Any]) -> Iterator[Finding]:
    """What `ray up` copies must be there; Ray takes relative paths from the folder in which it is started."""
    mounts = config.get("file_mounts") if isinstance(config.get("file_mounts"), dict) else {}
    auth = config.get("auth") if isinstance(config.get("auth"), dict) else {}
    named = {f"file_mounts {r}": str(s) for r, s in mounts.items()}
    named |= {f"auth.{k}": str(v) for k, v in auth.items() if k.startswith("ssh_") and k.endswith("_key")}
    missing = [f"{s} ({name})" for name, s in named.items() if not os.path.exists(os.path.expanduser(s))]
    if missing:
        yield Finding("files", "error", f"not here: {', '.join(missing)}", "make it, or take the line out")
    setup = ("setup_commands", "head_setup_commands", "worker_setup_commands")
    commands = str([config.get(key) for key in setup])
    lost = []
    for remote, source in mounts.items():
        folder = Path(os.path.expanduser(str(source)))
        installed = re.search(
            rf"pip install [^'\"&;]*{re.escape(str(remote).rstrip('/'))}(?![\w/])", commands
        )
        if installed and folder.is_dir() and not (folder / "pyproject.toml").exists():
            lost.append(
                f"{remote} is installed with pip, but {source} is {folder.resolve()}, without a pyproject.toml"
            )
    if lost:
        mend = "start ray up where that path leads to the project: Ray takes it from the current folder"
        yield Finding("files", "error", "; ".join(lost), mend)
    if named and not missing and not lost:
        yield Finding("files", "ok", f"what is copied from here is there ({', '.join(named.values())})")


def _kube_facts(documents: list[dict[str, Any]], found: list[scan.Value]) -> Iterator[Finding]:
    for document in documents:
        for group in _nested(document, "workerGroupSpecs") or []:
            if isinstance(group, dict):
                name, least, most = group.get("groupName"), group.get("minReplicas"), group.get("maxReplicas")
                least = group.get("replicas", 0) if least is None else least
                yield Finding("workers", "note", f"{name}: {least} to {least if most is None else most} pods")
    hosts = {v.text for v in found if v.path.endswith("rayStartParams.dashboard-host")}
    for host in sorted(hosts - {"127.0.0.1", "localhost"}):
        yield Finding(
            "dashboard host",
            "note",
            f"{host}: every pod that the network policies let through reaches the dashboard",
        )


def _nested(value: Any, key: str) -> Any:
    """The first value of this key anywhere below."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for v in value if (found := _nested(v, key)) is not None), None)
    return None
