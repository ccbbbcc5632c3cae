"""Versions and GPUs, here and on the nodes, from what `node.facts` returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from crayon.ops.doctor.findings import Finding, count
from crayon.system.host import DISTRIBUTION

Facts = Mapping[str, Any]
MUST_AGREE = ("crayon", "ray")
"""Packages of which the driver and the workers need the same version."""


def versions(here: Facts, nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """What is installed here against what pyproject.toml asks for, and on each node against here."""
    wrong = _out_of_range(here)
    mend = f"install what is missing or wrong: uv sync, or pip install {' '.join(map(repr, wrong))}"
    if "Python" in " ".join(wrong):
        mend = "make a new environment with such a Python: uv sync --python 3.11"
    told = _told(here)
    if wrong:
        yield Finding("here", "error", f"{told}; Crayon needs {', '.join(wrong)}", mend)
    else:
        yield Finding("here", "ok", told)
    for node in nodes:
        yield _node_versions(here, node)
    yield from _between(nodes)


def _node_versions(here: Facts, node: Mapping[str, Any]) -> Finding:
    facts, name = node.get("facts") or {"failed": "it did not answer"}, node_name(node)
    if "failed" in facts:
        return Finding(name, "error", f"can't be asked: {facts['failed']}", "ray status, and its raylet.err")
    own, theirs = here["packages"], facts["packages"]
    if theirs["crayon"] is None:
        return Finding(
            name,
            "error",
            f"crayon is not installed; {_told(facts)}",
            f"pip install . there in Ray's environment, with Python {here['python']}; or train with `uv run` from a "
            "checkout, which installs it for the workers",
        )
    strict: list[str] = []
    loose: list[str] = []
    if facts["python"] != here["python"]:
        strict.append(f"Python {facts['python']} (here {here['python']})")
    for package, version in theirs.items():
        if version != own[package]:
            text = f"{package} {version or 'missing'} (here {own[package] or 'missing'})"
            (strict if package in MUST_AGREE or version is None else loose).append(text)
    wrong = _out_of_range(facts)
    cores = f"; {count(int(node['cpus']), 'CPU')} for Ray, {count(facts['cores'], 'core')}"
    if strict or wrong:
        text = ", ".join([*strict, *loose]) or _told(facts)
        needs = f"; Crayon needs {', '.join(wrong)}" if wrong else ""
        return Finding(name, "error", f"{text}{needs}", "install the same versions there as here")
    if loose:
        return Finding(
            name,
            "warning",
            f"{', '.join(loose)}{cores}",
            "the same versions on all machines give the same results",
        )
    head = "; the head" if node["head"] else ""
    return Finding(name, "ok", f"the same versions as here{cores}{head}")


def _between(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Workers compute one gradient together: torch and NCCL must be the same on all nodes."""
    answered = [n["facts"] for n in nodes if n.get("facts") and "failed" not in n["facts"]]
    for what, values in (
        ("torch", {f["packages"]["torch"] for f in answered}),
        ("NCCL", {f["torch"].get("nccl") for f in answered if f["torch"].get("gpus")}),
    ):
        if len(values) > 1:
            yield Finding(
                f"{what} on nodes",
                "error",
                f"not the same everywhere: {', '.join(sorted(map(str, values)))}",
                f"install one version of {'torch' if what == 'NCCL' else what} on all nodes",
            )


def gpus(here: Facts, nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """What torch, the driver and Ray say of each machine's GPUs. Having none is a fact."""
    yield _gpus("here", here, None)
    for node in nodes:
        if node.get("facts") and "failed" not in node["facts"]:
            yield _gpus(node_name(node), node["facts"], node["gpus"])


def _gpus(name: str, facts: Facts, ray: float | None) -> Finding:
    torch, driver, version = facts["torch"], facts["driver"], facts["packages"]["torch"]
    if "late" in torch:
        return Finding(name, "warning", f"torch {version}: {torch['failed']}; not checked")
    if "failed" in torch:
        return Finding(name, "error", f"torch can't be imported: {torch['failed']}", "reinstall torch")
    seen, there = torch["gpus"], driver["gpus"]
    built = f"CUDA {torch['cuda']}, NCCL {torch['nccl']}" if torch["cuda"] else "a build without CUDA"
    if "failed" in driver:
        return Finding(
            name,
            "warning",
            f"nvidia-smi fails ({driver['failed']}); torch {version}, {built}, sees {count(len(seen), 'GPU')}",
            "mend NVIDIA's driver, or run on the CPU with --device cpu",
        )
    if not seen and not there:
        text = f"no GPU; torch {version}, {built}; training uses the CPU"
        if ray:
            return Finding(
                name, "error", f"{text}, but Ray counts {ray:g} GPUs", "ray start without --num-gpus there"
            )
        return Finding(name, "note", text)
    if len(seen) < len(there) and not seen:
        mend = (
            "a newer driver, or a torch for an older CUDA; and CUDA_VISIBLE_DEVICES must not hide them"
            if torch["cuda"]
            else "install torch with CUDA: https://pytorch.org/get-started/locally"
        )
        return Finding(
            name,
            "error",
            f"{_names(there)} with driver {driver['version']}, but torch {version} ({built}) sees none",
            mend,
        )
    text = f"{_names(seen)}; torch {version}, {built}, driver {driver['version'] or 'unknown'}"
    if ray is not None and int(ray) != len(seen):
        return Finding(
            name,
            "warning",
            f"{text}; Ray counts {ray:g}",
            f"ray start --num-gpus={len(seen)} there, if Ray is to use them all",
        )
    return Finding(name, "ok", text + ("; Ray counts the same" if ray is not None else ""))


def node_name(node: Mapping[str, Any]) -> str:
    """An address is not enough: several nodes can be on one machine."""
    return f"{node['address']} {node['id'][:6]}"


def _names(gpus: Sequence[str]) -> str:
    return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))


def _told(facts: Facts) -> str:
    packages = [f"{name} {version or 'missing'}" for name, version in facts["packages"].items()]
    return ", ".join([f"Python {facts['python']}", *packages])


def _out_of_range(facts: Facts) -> list[str]:
    """The requirements of this Crayon that these versions don't meet."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    needs = {need.name: need.specifier for need in map(Requirement, metadata.requires(DISTRIBUTION) or [])}
    wanted = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    wrong = [] if wanted.contains(facts["python"], prereleases=True) else [f"Python {wanted}"]
    for package, version in facts["packages"].items():
        if package in needs and not (version and needs[package].contains(version, prereleases=True)):
            wrong.append(f"{package}{needs[package]}")
    return wrong
