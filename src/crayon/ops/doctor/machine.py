"""Versions and GPUs, here and on the nodes, from what `node.facts` returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from crayon.ops.doctor.findings import Finding, count, error, note, ok, warning
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
    if wrong:
        yield error("here", f"{_told(here)}; Crayon needs {', '.join(wrong)}", mend)
    else:
        yield ok("here", _told(here))
    yield from (_node_versions(here, node) for node in nodes)
    # Workers compute one gradient together: torch and NCCL must be the same on all nodes.
    answered = [n["facts"] for n in nodes if "failed" not in n["facts"]]
    for what, found in (
        ("torch", {f["packages"]["torch"] for f in answered}),
        ("NCCL", {f["torch"].get("nccl") for f in answered if f["torch"].get("gpus")}),
    ):
        if len(found) > 1:
            text = f"not the same everywhere: {', '.join(sorted(map(str, found)))}"
            yield error(f"{what} on nodes", text, "install one version of torch on all nodes")


def _node_versions(here: Facts, node: Mapping[str, Any]) -> Finding:
    facts, name = node["facts"], node["name"]
    if "failed" in facts:
        return error(name, f"can't be asked: {facts['failed']}", "ray status, and its raylet.err")
    if facts["packages"]["crayon"] is None:
        mend = (
            f"pip install . there in Ray's environment, with Python {here['python']}; or train with `uv run` from a "
            "checkout, which installs it for the workers"
        )
        return error(name, f"crayon is not installed; {_told(facts)}", mend)
    strict: list[str] = []
    loose: list[str] = []
    if facts["python"] != here["python"]:
        strict.append(f"Python {facts['python']} (here {here['python']})")
    for package, version in facts["packages"].items():
        own = here["packages"][package]
        if version != own:
            text = f"{package} {version or 'missing'} (here {own or 'missing'})"
            (strict if package in MUST_AGREE or version is None else loose).append(text)
    wrong = _out_of_range(facts)
    if strict or wrong:
        needs = f"; Crayon needs {', '.join(wrong)}" if wrong else ""
        text = ", ".join([*strict, *loose]) or _told(facts)
        return error(name, f"{text}{needs}", "install the same versions there as here")
    cores = f"; {count(int(node['cpus']), 'CPU')} for Ray, {count(facts['cores'], 'core')}"
    if loose:
        mend = "the same versions on all machines give the same results"
        return warning(name, f"{', '.join(loose)}{cores}", mend)
    return ok(name, f"the same versions as here{cores}{'; the head' if node['head'] else ''}")


def gpus(here: Facts, nodes: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """What torch, the driver and Ray say of each machine's GPUs. Having none is a fact."""
    yield _gpus("here", here, None)
    for node in nodes:
        if "failed" not in node["facts"]:
            yield _gpus(node["name"], node["facts"], node["gpus"])


def _gpus(name: str, facts: Facts, ray: float | None) -> Finding:
    """ray: how many Ray counts; None where it isn't asked."""
    torch, driver, version = facts["torch"], facts["driver"], facts["packages"]["torch"]
    if "late" in torch:
        return warning(name, f"torch {version}: {torch['failed']}; not checked")
    if "failed" in torch:
        return error(name, f"torch can't be imported: {torch['failed']}", "reinstall torch")
    seen, there = torch["gpus"], driver["gpus"]
    built = f"CUDA {torch['cuda']}, NCCL {torch['nccl']}" if torch["cuda"] else "a build without CUDA"
    if "failed" in driver:
        sees = f"torch {version}, {built}, sees {count(len(seen), 'GPU')}"
        mend = "mend NVIDIA's driver, or run on the CPU with --device cpu"
        return warning(name, f"nvidia-smi fails ({driver['failed']}); {sees}", mend)
    if not seen and there:
        mend = (
            "a newer driver, or a torch for an older CUDA; and CUDA_VISIBLE_DEVICES must not hide them"
            if torch["cuda"]
            else "install torch with CUDA: https://pytorch.org/get-started/locally"
        )
        text = f"{_names(there)} with driver {driver['version']}, but torch {version} ({built}) sees none"
        return error(name, text, mend)
    if not seen:
        text = f"no GPU; torch {version}, {built}; training uses the CPU"
        if ray:
            return error(name, f"{text}, but Ray counts {ray:g} GPUs", "ray start without --num-gpus there")
        return note(name, text)
    text = f"{_names(seen)}; torch {version}, {built}, driver {driver['version'] or 'unknown'}"
    if ray is not None and int(ray) != len(seen):
        mend = f"ray start --num-gpus={len(seen)} there, if Ray is to use them all"
        return warning(name, f"{text}; Ray counts {ray:g}", mend)
    return ok(name, text + ("; Ray counts the same" if ray is not None else ""))


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
    python = SpecifierSet(metadata.metadata(DISTRIBUTION)["Requires-Python"])
    wrong = [] if python.contains(facts["python"], prereleases=True) else [f"Python {python}"]
    for package, version in facts["packages"].items():
        if package in needs and not (version and needs[package].contains(version, prereleases=True)):
            wrong.append(f"{package}{needs[package]}")
    return wrong
