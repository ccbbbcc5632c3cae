"""Checkpoints that are complete or absent, exact to the bit, and that can't execute code when loaded.

    <run>/checkpoints/step-000001234/
        weights.safetensors ...              one file per group of tensors
        state.json config.json metrics.json
        manifest.json                        format, versions, step; size and SHA-256 of every file above

A checkpoint is written into a temporary folder, flushed and renamed. Only one process writes (rank 0), every one
may read. `best` is a mark in the manifest, so it can't disagree with what is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crayon import __version__
from crayon.config.names import differences
from crayon.errors import BadInput
from crayon.system.files import TEMPORARY, remove, sync
from crayon.system.runfolder import CHECKPOINTS, MANIFEST, RunFolder

FORMAT = 1
_REPLACED = ".replaced-"
_FILE = re.compile(r"[a-z][a-z0-9_]*\.(json|safetensors)")
_STEP = re.compile(r"step-(\d{9,})")


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
    """A complete checkpoint that is not loaded yet."""

    step: int
    path: Path
    uri: str
    """Where it is, to show to people; the path, but for a run in an object store."""
    manifest: dict[str, Any]

    @property
    def best(self) -> bool:
        """Whether it was the best so far when it was written; the newest of these is the best of all."""
        return self.manifest["best"]

    def unusable(self, why: str) -> BadInput:
        """The sentence for a checkpoint that can't be loaded."""
        return _unusable(self.path, self.uri, why)


def save(run: RunFolder, checkpoint: Checkpoint, *, best: bool = False, keep: int = 2) -> Entry:
    """Write a checkpoint, then delete all but the newest `keep` and the best. For rank 0 only.

    Tensors may lie on any device, be views, share memory or be in channels_last order; values and dtypes are kept
    exactly. In an object store the run's other files are brought up to date before the checkpoint is. Raises
    RunFailed where it can't be written; then nothing of it stays, and those before it do.
    """
    root = run.path / CHECKPOINTS
    name = f"step-{checkpoint.step:09d}"
    final, temporary = root / name, root / f"{TEMPORARY}{name}-{os.getpid()}"
    with run.guard(final):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(root)
        try:
            manifest = _write(temporary, checkpoint, best)
            if final.exists():
                # A folder can't be replaced in one move: while `final` is away, readers take the one put aside.
                os.rename(final, root / (_REPLACED + name))
            os.rename(temporary, final)
            sync(root)
        except BaseException:
            remove(temporary)
            raise
        finally:
            _sweep(root)
    run.push()
    run.push(f"{CHECKPOINTS}/{name}")
    _prune(run, keep, checkpoint.step)
    return Entry(checkpoint.step, final, f"{run.uri}/{CHECKPOINTS}/{name}", manifest)


def entries(run: RunFolder) -> list[Entry]:
    """All complete checkpoints, oldest first. Raises BadInput where a manifest can't be understood."""
    while True:
        paths = [path for _, path in sorted(_folders(run.path / CHECKPOINTS).items())]
        try:
            return [_entry(run, path) for path in paths]
        except BadInput:
            if all(path.exists() for path in paths):
                raise  # Otherwise a process that trains has written a newer one and removed an old one meanwhile.


def latest(run: RunFolder) -> Entry | None:
    """The newest complete checkpoint."""
    return max(entries(run), key=lambda e: e.step, default=None)


def best(run: RunFolder) -> Entry | None:
    """The newest complete checkpoint that was the best when it was written."""
    return max((e for e in entries(run) if e.best), key=lambda e: e.step, default=None)


def load(entry: Entry, groups: Iterable[str] | None = None, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint, with these groups of tensors (None = all), after checking every file that is read.

    Raises BadInput where a file is missing, cut off, changed or not what it should be.
    """
    files = entry.manifest["files"]
    available = [n.removesuffix(".safetensors") for n in files if n.endswith(".safetensors")]
    wanted = available if groups is None else list(groups)
    for group in wanted:
        if group not in available:
            raise entry.unusable(f"has no {group}.safetensors (it has {', '.join(sorted(available))})")
    tensors = {group: _read_tensors(entry, f"{group}.safetensors", device) for group in wanted}
    state, config, metrics = (_read_json(entry, f"{n}.json") for n in ("state", "config", "metrics"))
    return Checkpoint(entry.step, tensors, state, config, metrics)


def verify(entry: Entry) -> None:
    """Check every file of a checkpoint against its manifest, without loading it. Raises BadInput."""
    for name in entry.manifest["files"]:
        _verified(entry, name)


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
    raise BadInput(
        f"{run} was started with other settings ({shown}{more}); give the same settings to go on, or choose "
        "another --name to start anew."
    )


def _short(value: Any) -> str:
    """On one line, and short: a checkpoint of someone else may hold anything."""
    text = str(value)
    return text if len(text) <= 80 and text.isprintable() else f"{text[:80]!r}"


def restore_network(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`network.load_state_dict`, strict in names, shapes and dtypes. Raises BadInput, the network unchanged."""
    own = network.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors:
            where = "the checkpoint" if name in tensors else "the network"
            raise BadInput(f"The checkpoint holds another network: only {where} has {name}.")
        ours, theirs = ((tuple(t.shape), str(t.dtype)[6:]) for t in (own[name], tensors[name]))
        if ours != theirs:
            raise BadInput(
                f"The checkpoint holds another network: {name} is {theirs[1]} {theirs[0]} there and "
                f"{ours[1]} {ours[0]} here."
            )
    network.load_state_dict(dict(tensors))


# Writing


def _write(folder: Path, checkpoint: Checkpoint, best: bool) -> dict[str, Any]:
    folder.mkdir(mode=0o700)
    for group, tensors in checkpoint.tensors.items():
        if not _FILE.fullmatch(f"{group}.safetensors"):
            raise ValueError(f"a group of tensors can't be called {group!r}")
        try:
            save_file(_plain(tensors), folder / f"{group}.safetensors")
        except SafetensorError as error:  # its name for any failure of the disk
            raise OSError(str(error)) from error
    for name in ("state", "config", "metrics"):
        # Python's JSON writes and reads NaN and Infinity: here exactness matters more than the norm.
        (folder / f"{name}.json").write_text(json.dumps(getattr(checkpoint, name), indent=1))
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    manifest = {
        "format": FORMAT,
        "crayon": __version__,
        "torch": torch.__version__,
        "job": checkpoint.config.get("job"),
        "step": checkpoint.step,
        "best": best,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*folder.iterdir(), folder):
        sync(path)
    return manifest


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, none sharing memory with another: all that safetensors can express."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        whole = copy.untyped_storage().nbytes() == copy.nbytes
        if not whole or copy.untyped_storage().data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        plain[name] = copy
    return plain


def _prune(run: RunFolder, keep: int, just_written: int) -> None:
    found = sorted(_folders(run.path / CHECKPOINTS).items())
    marked = []
    for step, path in found:
        try:
            marked += [step] if _entry(run, path).best else []
        except BadInput:  # said at the next resume; a run that trains well goes on
            continue
    stay = {step for step, _ in found[-max(keep, 1) :]} | set(marked[-1:]) | {just_written}
    for step, path in found:
        if step not in stay:
            run.remove(f"{CHECKPOINTS}/{path.name}")


def _sweep(root: Path) -> None:
    """Mend what a killed writer left: unfinished folders go, one put aside comes back if not replaced."""
    for aside in root.glob(_REPLACED + "*"):
        home = root / aside.name.removeprefix(_REPLACED)
        if home.exists():
            remove(aside.rename(root / f"{TEMPORARY}{aside.name}"))
        else:
            os.rename(aside, home)
    for left in root.glob(TEMPORARY + "*"):
        remove(left)


# Reading


def _folders(root: Path) -> dict[int, Path]:
    while True:
        found, gone = {}, False
        for prefix in (_REPLACED, ""):
            for path in root.glob(f"{prefix}step-*"):
                match = _STEP.fullmatch(path.name.removeprefix(prefix))
                if match and (path / MANIFEST).exists():
                    found[int(match[1])] = path
                elif match and not path.exists():
                    gone = True
        if not gone:
            return found
        # Removed since it was listed, by a process that trains and has written a newer one: look for that.


def _unusable(path: Path, uri: str, why: str) -> BadInput:
    step = _STEP.search(path.name)
    older = [s for s in _folders(path.parent) if step and s < int(step[1])]
    then = f"go on from step {max(older)}" if older else "start anew (there is none before it)"
    what = "that folder" if uri == str(path) else f"that folder and {path}"
    return BadInput(f"Checkpoint {uri} {why}; delete {what} to {then}.")


def _entry(run: RunFolder, path: Path) -> Entry:
    uri = f"{run.uri}/{CHECKPOINTS}/{path.name}"

    def no(why: str) -> BadInput:
        return _unusable(path, uri, why)

    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        raise no(f"is damaged: {MANIFEST} can't be read") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise no(f"is damaged: {MANIFEST} is not one")
    if manifest.get("format") != FORMAT:
        theirs = f"format {manifest.get('format')!r} (crayon {manifest.get('crayon', 'unknown')})"
        raise no(f"has {theirs} and this is crayon {__version__}, which reads format {FORMAT}")
    files, step = manifest["files"], _STEP.search(path.name)
    sound = (
        all(_FILE.fullmatch(n) for n in files)
        and all(isinstance(f, dict) and {"bytes", "sha256"} <= f.keys() for f in files.values())
        and {"state.json", "config.json", "metrics.json"} <= files.keys()
        and isinstance(manifest.get("best"), bool)
        and manifest.get("step") == (int(step[1]) if step else None)
    )
    if not sound:
        raise no(f"is damaged: {MANIFEST} has been changed")
    return Entry(manifest["step"], path, uri, manifest)


def _verified(entry: Entry, name: str) -> Path:
    path, wanted = entry.path / name, entry.manifest["files"][name]
    try:
        size = path.stat().st_size
        if size != wanted["bytes"]:
            raise entry.unusable(f"is damaged: {name} has {size} bytes instead of {wanted['bytes']}")
        if _sha256(path) != wanted["sha256"]:
            raise entry.unusable(f"is damaged: the content of {name} has changed")
    except FileNotFoundError:
        raise entry.unusable(f"is damaged: {name} is missing") from None
    except OSError as error:
        raise entry.unusable(f"can't be read ({error})") from None
    return path


def _read_json(entry: Entry, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_verified(entry, name).read_bytes())
    except (ValueError, RecursionError):
        raise entry.unusable(f"is damaged: {name} is not JSON") from None
    except OSError as error:
        raise entry.unusable(f"can't be read ({error})") from None
    if not isinstance(content, dict):
        raise entry.unusable(f"is damaged: {name} holds no object")
    return content


def _read_tensors(entry: Entry, name: str, device: str | torch.device) -> dict[str, Tensor]:
    path = _verified(entry, name)
    try:
        with safe_open(path, framework="pt") as file:
            # Copied, for what it gives is a view of the mapped file.
            return {key: file.get_tensor(key).to(device, copy=True) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise entry.unusable(f"is damaged: {name} is not a safetensors file ({error})") from None


def _sha256(path: Path) -> str:
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()
