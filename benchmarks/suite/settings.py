"""What a benchmark is run on: which data, how long, which device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

JOBS = ("mnist", "cifar10", "autoencoder", "gan")
MADE = 30_000
"""Shapes that are rendered where no data is given; with --quick 1,500. Far fewer would make an epoch's end dominate."""


class Missing(Exception):
    """Data or a library that was asked for isn't there: one sentence."""


@dataclass(frozen=True)
class Settings:
    """mnist, cifar10, faces: folders with data, None = made on the spot. quick: short, to try the benchmark."""

    mnist: str | None = None
    cifar10: str | None = None
    faces: str | None = None
    quick: bool = False
    device: str = "cpu"

    def flags(self, job: str) -> list[str]:
        """Crayon's settings that select the data of `job`."""
        few = ["--data.size", str(1500 if self.quick else MADE)]
        if job in ("mnist", "autoencoder"):
            if self.mnist:
                return ["--data.root", self.mnist, *(few if self.quick else [])]
            return ["--data.source", "shapes", *few]
        if job == "cifar10":
            if self.cifar10 and (Path(self.cifar10) / "cifar-10-batches-py").is_dir():
                return ["--data.root", self.cifar10, *(few if self.quick else [])]
            if self.cifar10:
                return ["--data.source", "folder", "--data.root", self.cifar10, *(few if self.quick else [])]
            return ["--data.source", "shapes", *few]
        if self.faces:
            folder = ["--data.source", "folder", "--data.root", self.faces, "--data.image-size", "64"]
            return [*folder, "--data.val-fraction", "0.13", *(few if self.quick else [])]
        return ["--data.source", "faces", *(few if self.quick else [])]

    def data(self, job: str) -> str:
        """What the figures are of, in words."""
        given = {"mnist": self.mnist, "autoencoder": self.mnist, "cifar10": self.cifar10, "gan": self.faces}[
            job
        ]
        if given is None:
            return "procedural faces" if job == "gan" else "procedural shapes"
        if job == "cifar10":
            return "CIFAR-10" if (Path(given) / "cifar-10-batches-py").is_dir() else "cifar10-jpeg"
        return "faces" if job == "gan" else "MNIST"

    def described(self) -> dict[str, object]:
        """For the record: what decides figures, without the paths of this machine."""
        return {"quick": self.quick, "device": self.device, "data": {job: self.data(job) for job in JOBS}}


def find(
    root: str | None, mnist: str | None, cifar10: str | None, faces: str | None
) -> dict[str, str | None]:
    """Folders by data set: those named, else what lies under `root`. Raises Missing for a folder that isn't there."""
    found = {"mnist": mnist, "cifar10": cifar10, "faces": faces}
    if root is not None:
        base = _folder("--data.root", root)
        places = {
            "mnist": [base / "MNIST"],
            "cifar10": [base / "cifar-10-batches-py", base / "cifar10-jpeg", base / "cifar10"],
            "faces": [base / "faces"],
        }
        for name, candidates in places.items():
            there = next((c for c in candidates if c.is_dir()), None)
            if found[name] is None and there is not None:
                inside = there.name in ("MNIST", "cifar-10-batches-py")
                found[name] = str(there.parent if inside else there)
        if not any(found.values()):
            raise Missing(
                f"--data.root {root} has none of MNIST, cifar10-jpeg, cifar-10-batches-py and faces."
            )
    return {
        name: None if path is None else str(_folder(f"--{name}", path).resolve())
        for name, path in found.items()
    }


def _folder(flag: str, path: str) -> Path:
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise Missing(f"{flag} {path}: there is no such folder.")
    return folder
