"""What the commands that use a trained model may be asked for. This module imports neither torch nor Ray.

A command is a dataclass in `COMMANDS`, and a module `crayon.use.<command>` (dashes as underscores) with

    def run(settings: <its dataclass>, context: Context) -> None

which raises CrayonError. Fields made by `positional` are words of the command line, the others are flags.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from crayon.config.fields import positional, setting
from crayon.report.events import Emit
from crayon.tasks.jobs import get, names

NEEDS = {
    "predict": "classify",
    "reconstruct": "reconstruct",
    "encode": "encode",
    "neighbours": "encode",
    "generate": "generate",
    "interpolate": "generate",
    "explore": "edit",
    "edit": "edit",
    "invert": "edit",
}
"""Which ability of a task (`Experiment.abilities`) a command needs; the others are for every job."""


class Context(NamedTuple):
    """What a command is run with, beside its settings."""

    job: str
    program: str
    """What a person called, for messages: "crayon mnist predict"."""
    command: str
    """The whole command line, as it is recorded beside results."""
    emit: Emit
    """Takes the events that crayon.report.terminal draws."""


@dataclass(frozen=True, kw_only=True)
class UseConfig:
    """What all these commands have."""

    run: str = positional(
        "RUN", "Folder or s3:// or gs:// address of a run, of a sweep or of one checkpoint."
    )
    checkpoint: str = "best"
    """best, last or the number of a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = GPU when there is one."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(UseConfig):
    """Make images from seeds."""

    seeds: str = "0..63"
    """Which images: 0..999999, 7, 3,5,9 or 0..9,50..59. A seed is always the same image."""
    out: str
    """Folder for the results; where it has a part of them already, the rest is made."""
    format: Literal["png", "npy"] = "png"
    """png = one file per image; npy = arrays uint8 (images, channels, height, width)."""
    block: int = setting(1024, low=1)
    """Images per folder of PNG files, or per array."""
    workers: int = setting(0, low=0)
    """Ray workers; 0 = this process, without Ray."""


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(UseConfig):
    """Walk from one seed's image to another's."""

    seeds: str = "0,1,2,3"
    """The images to walk to, one after the other."""
    out: str = "walk.gif"
    """File; its ending decides: .gif, .mp4 (needs the extra `video`) or .png (one row per leg)."""
    steps: int = setting(24, low=2, high=1000)
    """Images per leg (in a .png at most 16)."""
    fps: int = setting(24, low=1, high=50)
    """Images per second of a .gif or .mp4."""
    loop: bool = True
    """Also walk from the last seed back to the first."""


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(UseConfig):
    """Find directions along which the images change most."""

    out: str
    """Folder for directions.json and the pictures."""
    method: Literal["activations", "weights"] = "activations"
    """Principal components of the first layer's activations (GANSpace), or eigenvectors of its weights (SeFa)."""
    directions: int = setting(8, low=1)
    """How many, the strongest first."""
    seeds: str = "0..3"
    """Images that are moved along each of them, one picture each."""
    strength: float = setting(4.0, above=0)
    """How far to go to either side, in standard deviations of a latent."""
    columns: int = setting(9, low=3)
    """Images per row; the one in the middle is the image itself."""


@dataclass(frozen=True, kw_only=True)
class EditConfig(UseConfig):
    """Move seeds along such directions."""

    seeds: str = "0"
    """Images to be changed."""
    directions: str
    """The directions.json that explore wrote."""
    along: str
    """How far along which direction, in standard deviations: 1=2.5,3=-1."""
    out: str = "edited.png"
    """File: each image before and after."""


@dataclass(frozen=True, kw_only=True)
class InvertConfig(UseConfig):
    """Find the seed and the latent whose image is nearest to a given one."""

    image: str = positional("IMAGE", "A picture, of any size.")
    out: str
    """Folder for the pictures, the latent and the errors."""
    search: int = setting(10_000, low=1)
    """Seeds 0..N-1 are looked through."""
    space: Literal["features", "pixels"] = "features"
    """Where nearness is measured: in the run's feature extractor (refining: and in pixels), or in pixels alone."""
    refine: int = setting(200, low=0)
    """Steps of gradient descent on the latents of the nearest seeds; 0 = none."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(UseConfig):
    """Write the model for use without Crayon."""

    out: str
    """Folder for the files and the model card."""
    formats: tuple[Literal["safetensors", "onnx", "pt2"], ...] = ("safetensors", "onnx", "pt2")
    """safetensors with config.json; ONNX (needs the extra `export`); pt2 = torch.export."""
    check: bool = False
    """Compare what each file makes of the run's own test images with what predict or encode make of them."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Images of a data source, in place of files."""

    source: str | None = None
    """mnist, cifar10, celeba, digits, shapes, faces or folder, as for training."""
    root: str | None = None
    """Folder with the downloaded set, or with your own images for `folder`. Default: the user's cache."""
    split: Literal["test", "val", "train"] = "test"
    """Which of its images."""
    size: int | None = setting(None, low=2)
    """Of the training images that aren't held out, use only this many; or render this many in all. None = all."""


@dataclass(frozen=True, kw_only=True)
class SpreadConfig(UseConfig):
    """What commands that look at many images have."""

    inputs: tuple[str, ...] = positional(
        "INPUT...", "Image files, folders, globs, s3:// or gs:// prefixes.", default=()
    )
    out: str = "out"
    """Folder for the results. The same command goes on where it was stopped."""
    workers: int = setting(0, low=0)
    """Ray workers. 0 = this process. Joins the cluster in RAY_ADDRESS if there is one."""
    data: SourceConfig = dataclasses.field(default_factory=SourceConfig)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(SpreadConfig):
    """Classify images: files, folders, globs, s3:// prefixes or a data source."""

    out: str = "predictions"
    format: Literal["csv", "parquet"] = "csv"
    """Of the table."""
    top_k: int = setting(3, low=1)
    """How many classes to name for each image, the most probable first."""
    labels: Literal["auto", "folder", "none"] = "auto"
    """folder = an image's class is the name of its folder. auto = if that is so for all of them."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(SpreadConfig):
    """Features of images, as Parquet or npy."""

    out: str = "features"
    format: Literal["parquet", "npy"] = "parquet"
    """parquet = features.parquet; npy = features.npy, with the images' names in images.csv."""


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(SpreadConfig):
    """Images through the code and back: pictures, errors, anomalies."""

    out: str = "reconstructions"
    format: Literal["csv", "parquet"] = "csv"
    """Of the table of errors."""
    save: bool = False
    """Also keep each reconstruction as a PNG file, in images/."""


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(SpreadConfig):
    """The images whose features are nearest to those of a given one."""

    inputs: tuple[str, ...] = positional(
        "QUERY...", "Images whose neighbours are looked for: files, folders, globs, s3:// or gs:// prefixes."
    )
    among: tuple[str, ...] = ()
    """Where to look: files, folders, globs, s3:// or gs:// prefixes; or give --data.source."""
    out: str = "neighbours"
    count: int = setting(8, low=1)
    """How many neighbours of each image."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSourceConfig:
    """Images that the model is measured on."""

    source: str | None = None
    """mnist, cifar10, celeba, digits, shapes, faces or folder, as for training. None = what the run was trained on."""
    root: str | None = None
    """Folder with the downloaded set, or with your own images for `folder`. None = the run's, if the source is."""
    split: Literal["all", "test", "val", "train"] = "all"
    """Which of its images. all = as at the end of training, with what is fitted on the training split."""
    size: int | None = setting(None, low=2)
    """Of the training images that aren't held out, use only this many; or render this many in all. None = as many as
    the run, if the source is its own."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(UseConfig):
    """The figures and pictures that training ends with, on any data source."""

    out: str = "evaluation"
    """Folder for the results."""
    workers: int = setting(0, low=0)
    """Ray workers. 0 = this process. Joins the cluster in RAY_ADDRESS if there is one."""
    data: EvaluateSourceConfig = dataclasses.field(default_factory=EvaluateSourceConfig)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(UseConfig):
    """A web page and a JSON API for trained models, until Ctrl-C."""

    more: tuple[str, ...] = positional("[RUN...]", "More runs, of any job, beside the first.", default=())
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 = all of this machine's; there is no password, so whoever reaches it may use the
    models."""
    port: int = setting(8000, low=1, high=65_535)
    """Port to listen on."""
    names: str = ""
    """Host names by which the page may be asked for where a proxy of yours stands before it, with commas between.
    Addresses, localhost and, where others can reach it, this machine's own name are known."""
    max_mib: float = setting(8.0, low=0.01, high=1024)
    """Largest request in MiB."""


COMMANDS: dict[str, type[UseConfig]] = {
    "generate": GenerateConfig,
    "interpolate": InterpolateConfig,
    "explore": ExploreConfig,
    "edit": EditConfig,
    "invert": InvertConfig,
    "export": ExportConfig,
    "predict": PredictConfig,
    "reconstruct": ReconstructConfig,
    "encode": EncodeConfig,
    "evaluate": EvaluateConfig,
    "neighbours": NeighboursConfig,
    "serve": ServeConfig,
}
"""By name; the docstring of its settings is a command's line of help."""


def commands_of(job: str) -> list[str]:
    """The commands that use a model of this job."""
    abilities = get(job).abilities
    return [name for name in COMMANDS if name not in NEEDS or NEEDS[name] in abilities]


def jobs_with(command: str) -> list[str]:
    """The jobs whose models a command is for."""
    return [job for job in names() if command in commands_of(job)]
