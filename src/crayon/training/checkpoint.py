"""A checkpoint is one safetensors file: complete or absent, exact to the bit, unable to run code when it is loaded.

    <run>/checkpoints/step-000001234.safetensors

Its tensors are called `<group>/<name>`: weights/classifier.head.weight, ema/..., optimizer/..., loop/... The header has
all else as JSON, with a SHA-256 of that JSON and one of each group's tensors. The file gets its name by one rename, in
an object store by the one PUT that uploads it. Only one process writes (rank 0), every one may read. Whether it is the
best stands in its header, so that it can't disagree with what is on the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crayon import __version__
from crayon.config.names import differences
from crayon.errors import BadInput, one_line
from crayon.system.files import atomic, header, remove
from crayon.system.runfolder import CHECKPOINTS, RunFolder

FORMAT = 2
_FILE = re.compile(r"step-(\d{9,})(\.safetensors)?")  # crayon 0.1 wrote folders of that name
_UNREADABLE = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass
class Checkpoint:
    """All of a run at one step."""

    step: int
    """Optimizer steps done since the start of the run."""
    tensors: dict[str, dict[str, Tensor]]
    """By group and name: {"weights": {"generator.conv.weight": ...}, "ema": ..., "optimizer": ...}."""
    state: dict[str, Any]
    """JSON: what else the loop needs to go on."""
    config: dict[str, Any]
    """The experiment, flat (crayon.config.names.flatten)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest metrics."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint of which only the header was read."""

    step: int
    path: Path
    uri: str
    """Where it is, to show to people; the path, but for a run in an object store."""
    before: int
    """The step of the checkpoint before it; 0 = it is the first."""
    best: bool = False
    """Whether it was the best so far when it was written; the newest of these is the best of all."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the tensors, by group."""

    def unusable(self, why: str) -> BadInput:
        """The sentence for a checkpoint that can't be loaded."""
        then = f"go on from step {self.before}" if self.before else "start anew (there is none before it)"
        what = "it" if self.uri == str(self.path) else f"it and {self.path}"
        return BadInput(f"Checkpoint {self.uri} {why}; delete {what} to {then}.")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            raise self.unusable(f"can't be read, damaged or cut off ({one_line(error, 160)})") from None

    def _header(self, about: Any) -> dict[str, Any]:
        """What `_sealed` was given, from the file's metadata."""
        if not isinstance(about, dict) or "sha256" not in about:
            raise self.unusable("is no checkpoint of Crayon, or its header is damaged")
        if about.get("format") != str(FORMAT):
            theirs = f"format {about.get('format')!r} (crayon {about.get('crayon')!r})"
            raise self.unusable(f"has {theirs} and this is crayon {__version__}, which reads format {FORMAT}")
        if about["sha256"] != _sealed({k: v for k, v in about.items() if k != "sha256"})["sha256"]:
            raise self.unusable("is damaged: its header has changed")
        found = {k: json.loads(about[k]) for k in ("step", "best", "digests", "state", "config", "metrics")}
        if found["step"] != self.step:
            raise self.unusable(f"is damaged: it is of step {found['step']}, not of the one in its name")
        return found


def save(run: RunFolder, checkpoint: Checkpoint, *, best: bool = False, keep: int = 2) -> None:
    """Write a checkpoint, then delete all but the newest `keep` and the best. For rank 0 only.

    Tensors may lie on any device, be views, share memory or be in channels_last order; values and dtypes are kept
    exactly. In an object store the run's other files are brought up to date before the checkpoint is. Raises
    RunFailed where it can't be written; then nothing of it stays, and those before it do.
    """
    name = f"{CHECKPOINTS}/step-{checkpoint.step:09d}.safetensors"
    final = run.path / name
    tensors = {
        group: {
            n: t.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for n, t in named.items()
        }
        for group, named in checkpoint.tensors.items()
    }
    # Python's JSON writes and reads NaN and Infinity: here exactness matters more than the norm.
    about = {k: json.dumps(getattr(checkpoint, k)) for k in ("step", "state", "config", "metrics")}
    digests = {group: _digest(named) for group, named in tensors.items()}
    about |= {"best": json.dumps(best), "digests": json.dumps(digests)}
    about |= {"format": str(FORMAT), "crayon": __version__, "torch": torch.__version__}
    with run.guard(final):
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in final.parent.glob(".tmp*"):  # of a writer that was killed, ours or safetensors' own
            remove(left)
        with atomic(final) as temporary:
            try:
                flat = {f"{group}/{n}": t for group, named in tensors.items() for n, t in named.items()}
                save_file(flat, temporary, _sealed(about))
            except SafetensorError as error:  # its name for any failure of the disk
                raise OSError(str(error)) from error
    run.push()
    run.push(name)
    found, marked = _listed(run), []
    for step in found:
        with contextlib.suppress(BadInput):  # said at the next resume; a run that trains well goes on
            marked += [step] if _entry(run, step, found).best else []
    stay = {*list(found)[-keep:], *marked[-1:], checkpoint.step}
    for step in [step for step in found if step not in stay]:
        run.remove(f"{CHECKPOINTS}/{found[step]}")


def entries(run: RunFolder, stored: bool = False) -> list[Entry]:
    """All checkpoints, oldest first: those on this machine or, where `stored`, those in the run's object store, which
    lie at `path` once they are fetched. Raises BadInput where one's header can't be understood."""
    while True:
        found = _listed(run, stored)
        try:
            return [_entry(run, step, found, stored) for step in found]
        except BadInput:
            if _listed(run, stored) == found:
                raise  # Otherwise a process that trains has written a newer one and removed an old one meanwhile.


def latest(run: RunFolder) -> Entry | None:
    """The newest checkpoint."""
    return max(entries(run), key=lambda e: e.step, default=None)


def best(run: RunFolder) -> Entry | None:
    """The newest checkpoint that was the best when it was written."""
    return max((e for e in entries(run) if e.best), key=lambda e: e.step, default=None)


def needed(run: RunFolder) -> list[Entry]:
    """The newest checkpoint, which a run goes on from, and the best, which it is measured by; often the same."""
    return list({e.step: e for e in (best(run), latest(run)) if e is not None}.values())


def keep_needed(run: RunFolder) -> None:
    """Delete what isn't `needed`."""
    kept = {entry.step for entry in needed(run)}
    for entry in entries(run):
        if entry.step not in kept:
            run.remove(f"{CHECKPOINTS}/{entry.path.name}")


def fork(source: RunFolder, into: RunFolder) -> None:
    """Have `into`, which has no checkpoint, be where `source` is: with what is `needed`, metrics and pictures."""
    with into.guard(into.path):
        if (source.path / "pictures").is_dir():
            shutil.copytree(source.path / "pictures", into.path / "pictures", dirs_exist_ok=True)
        shutil.copy(source.path / "metrics.jsonl", into.path)
        half = into.path / f".{CHECKPOINTS}"
        remove(half)
        half.mkdir(mode=0o700)
        for entry in needed(source):
            shutil.copy(entry.path, half)
        half.rename(into.path / CHECKPOINTS)  # there are all or none


def load(entry: Entry, groups: Iterable[str] | None = None) -> Checkpoint:
    """Read a checkpoint, with these groups of tensors (None = all), each checked against its digest; of the others
    nothing is read. Raises BadInput where the file is missing, cut off, changed or not what it should be."""
    with entry._reading(), safe_open(entry.path, framework="pt") as file:
        about = entry._header(file.metadata())  # not the entry's: the file may have been replaced since
        wanted = about["digests"] if groups is None else groups
        tensors: dict[str, dict[str, Tensor]] = {group: {} for group in wanted}
        for key in file.keys():  # noqa: SIM118
            group, _, name = key.partition("/")
            if group in tensors:  # cloned, as what is given is a view of the mapped file
                tensors[group][name] = file.get_tensor(key).clone()
        for group, named in tensors.items():
            if _digest(named) != about["digests"][group]:
                raise entry.unusable(f"is damaged: its tensors {group!r} have changed")
    return Checkpoint(entry.step, tensors, about["state"], about["config"], about["metrics"])


def check_identity(config: Mapping[str, Any], wanted: Mapping[str, Any], name: str = "") -> None:
    """Raise BadInput unless a checkpoint's flat config agrees with what is asked for (crayon.config.names.identity)."""
    absent = "not there"
    different = differences({k: config[k] for k in wanted if k in config}, wanted, absent)
    if not different:
        return
    different.sort(key=lambda k: (k not in ("job", "preset"), k))
    shown = "; ".join(f"{k} was {_short(config.get(k, absent))}, now {wanted[k]}" for k in different[:3])
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    run = f"Run {name!r}" if name else "This run"
    before = config.get("epochs")
    longer = different == ["epochs"] and isinstance(before, int) and before < wanted["epochs"]
    extend = ", add --extend to train for more epochs" if longer else ""
    raise BadInput(
        f"{run} was started with other settings ({shown}{more}); give the same settings to go on{extend}, or choose "
        "another --name to start anew."
    )


def _short(value: Any) -> str:
    """On one line, and short: a checkpoint of someone else may hold anything."""
    text = str(value)
    return text if len(text) <= 80 and text.isprintable() else f"{text[:80]!r}"


def restore_network(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`network.load_state_dict`, strict in names, shapes and dtypes. Raises BadInput, the network unchanged."""
    check_fit(network, tensors)
    network.load_state_dict(dict(tensors))


def check_fit(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise BadInput unless `tensors` have the names, shapes and dtypes of the network's, which may be on "meta"."""
    own = network.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors:
            where = "the checkpoint" if name in tensors else "the network"
            raise BadInput(f"The checkpoint holds another network: only {where} has {name}.")
        here, there = (f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in (own[name], tensors[name]))
        if here != there:
            raise BadInput(f"The checkpoint holds another network: {name} is {there} there and {here} here.")


# Writing


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of contiguous tensors on the CPU: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sealed(about: dict[str, str]) -> dict[str, str]:
    """A header with its SHA-256."""
    return about | {"sha256": hashlib.sha256(json.dumps(sorted(about.items())).encode()).hexdigest()}


# Reading


def _listed(run: RunFolder, stored: bool = False) -> dict[int, str]:
    """Names of files by step, in order."""
    if stored and run.store:
        names = {n.split("/")[1] for n in run.store.list() if n.startswith(f"{CHECKPOINTS}/")}
    else:
        names = {path.name for path in run.path.glob(f"{CHECKPOINTS}/step-*")}
    matches = [match for match in map(_FILE.fullmatch, names) if match]
    if not all(match[2] for match in matches):
        raise BadInput(
            f"{run.uri} has checkpoints of crayon 0.1, which this version ({__version__}) doesn't read; use it with "
            "crayon 0.1, or train it anew under another --name."
        )
    return dict(sorted((int(match[1]), match[0]) for match in matches))


def _entry(run: RunFolder, step: int, found: dict[int, str], stored: bool = False) -> Entry:
    name = f"{CHECKPOINTS}/{found[step]}"
    before = max((s for s in found if s < step), default=0)
    entry = Entry(step, run.path / name, f"{run.uri}/{name}", before)
    with entry._reading():
        opened: BinaryIO = run.store.open(name) if stored and run.store else entry.path.open("rb")
        with opened as file:
            about = entry._header(json.loads(header(file)[8:]).get("__metadata__"))
    return dataclasses.replace(entry, best=about["best"], digests=about["digests"])
