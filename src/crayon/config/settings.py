"""The settings that all jobs share. A field's dotted path is its name on the command line, in W&B, Optuna and
checkpoints; those of a kind of task stand in crayon.tasks.<kind>.settings.

These modules import neither torch nor Ray, so that `--help` and bad input answer at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from crayon.config import pairs
from crayon.config.fields import setting

Scalar = int | float | bool | str | None
SMALLEST, LARGEST = 8, 1024
"""Pixels of a side."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are fed."""

    source: str = "mnist"
    """mnist, cifar10, celeba, digits, shapes, faces (the last three need no download) or folder."""
    own: Any = setting(None, recorded=False)
    """A job's own source (crayon.Source), by whose name `source` may ask for it."""
    root: str | None = None
    """Folder with the downloaded set, or with your own images for `folder`; these may lie in s3:// or gs://, or in
    Parquet files or WebDataset shards. Default: the user's cache."""
    image_size: int | str = setting(28, low=SMALLEST, high=LARGEST)
    """Pixels of a side, 64, or HEIGHTxWIDTH, 96x64. Images of another size are resized as `fit` says."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """Of images of another shape: crop = the largest central part; pad = all of it, with mid grey (128) along two
    sides; stretch = all of it, out of proportion."""
    channels: Literal[1, 3] = 1
    """1 = grey, 3 = RGB."""
    range: str = "auto"
    """LOW..HIGH, such as -1024..3071: which values of images of more than 8 bits become black and white. auto = their
    smallest and largest finite ones in the training images, decided once. 8-bit images stay as they are."""
    size: int | None = setting(None, low=2)
    """Train on only this many of the images, held out from all of them as ever; or render this many for the procedural
    sets. None = all."""
    val_fraction: float = setting(0.08, low=0, below=1)
    """Share of the training images held out to select by, where a folder has no validation split of its own. The test
    split is never selected on."""
    test_fraction: float | None = setting(None, low=0, below=1)
    """Share of the images set aside as the test split, where the source has none. None = a tenth where a folder has
    class folders, or shards of labelled images, and no train folder, else none."""
    groups: str | None = None
    """Regular expression for the images' paths in a folder: those in which it captures the same, as patient(\\d+) does,
    stay on one side of a split."""
    residency: Literal["auto", "device", "stream"] = "auto"
    """Keep all images on the device, or stream them from a memory map. auto = device when they fit."""
    cache: Literal["on", "off"] = "on"
    """on = decode a folder's images once on each node, into the user's cache. off = read and decode them whenever they
    are used, for sets that the disk can't hold."""
    max_unreadable: float = setting(0.05, low=0, high=1)
    """Largest share of unreadable files that is skipped; more is an error."""

    def __post_init__(self) -> None:
        size = pairs.canonical_size("--data.image-size", self.image_size, SMALLEST, LARGEST)
        object.__setattr__(self, "image_size", size)
        object.__setattr__(self, "range", pairs.canonical_range("--data.range", self.range))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return (self.channels, *pairs.sides(self.image_size))

    @property
    def limits(self) -> tuple[float, float] | None:
        """(low, high) of `range`; None for auto."""
        return None if self.range == "auto" else pairs.ends(self.range)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, drawn anew for each image and epoch."""

    flip: bool = False
    """Mirror half of the images horizontally, in the next epoch the other half."""
    shift: int = setting(0, low=0, high=10_000, may_change=True)
    """Translate by up to this many pixels in each direction, edges reflected."""
    rotate: float = setting(0.0, may_change=True)
    """Rotate by up to this many degrees either way."""
    zoom: float = setting(0.0, low=0, high=1, may_change=True)
    """Scale by a factor within 1 - zoom .. 1 + zoom."""
    cutout: int = setting(0, low=0, high=10_000, may_change=True)
    """Side in pixels of a square painted with the mean colour; 0 = none."""
    resized_crop: float = setting(1.0, above=0, high=1, may_change=True)
    """Cut out a random window of at least this share of the area, up to 4/3 wider or higher than the image is, and
    bring it to the image's size (random resized crop); 1 = none. On photographs .08 to .5 is usual."""
    brightness: float = setting(0.0, low=0, may_change=True)
    """Multiply by a factor within 1 - brightness .. 1 + brightness (colour jitter, as the next three)."""
    contrast: float = setting(0.0, low=0, may_change=True)
    """Multiply the distance from the image's mean grey by such a factor."""
    saturation: float = setting(0.0, low=0, may_change=True)
    """Multiply the distance of colours from grey by such a factor; grey images stay."""
    hue: float = setting(0.0, low=0, high=0.5, may_change=True)
    """Turn hues by up to this share of the circle either way; grey images stay."""
    trivial: bool = False
    """Change each image by one random operation of random strength (TrivialAugment, wide): of geometry, colours,
    contrast or sharpness."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam with decoupled weight decay, one instance per network, all with the same `lr` and `beta1`."""

    beta2: float = setting(0.99, low=0, below=1)
    """Decay of the second-moment estimate."""
    eps: float = setting(1e-8, above=0)
    """Added to the denominator of the update."""
    weight_decay: float = setting(0.0, low=0)
    """Decoupled, applied to weights of two or more dimensions only."""
    bias_lr_factor: float = setting(1.0, above=0)
    """Learning rate of biases and normalisation gains, in multiples of `lr`."""
    warmup: float = setting(0.1, low=0, high=1)
    """Share of all steps over which the learning rate rises linearly from 0 to `lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """What follows the warm-up; linear and cosine end at `lr * final`."""
    final: float = setting(0.0, low=0, high=1)
    """Learning rate at the end, as a share of `lr`."""
    clip: float = setting(0.0, low=0)
    """Largest gradient norm per network; 0 = no clipping."""
    ema_images: float = setting(0.0, low=0)
    """Half-life, in images, of the averaged weights used for evaluation; 0 = evaluate the raw weights."""
    ema_statistics: bool = False
    """Average BatchNorm's statistics like the weights, instead of over the last ten or so batches: of a short run these
    are a large part, with weights long gone."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When and how the validation split is looked at."""

    every_epochs: int = setting(1, low=1)
    """Evaluate after every this many epochs, and after the last."""
    batch_size: int = setting(500, low=1)
    """Images per evaluation batch and worker."""
    latest: bool = False
    """Of equally good evaluations the latest is the best, not the first: on few images many are equal."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What survives a crash."""

    every_epochs: int = setting(1, low=1)
    """Write a checkpoint after every this many epochs, and after the last."""
    every_minutes: float = setting(5.0, low=0)
    """Write one in the middle of an epoch when the last is this old; 0 = only at epoch ends."""
    keep: int = setting(2, low=1)
    """How many of the newest to keep, beside the best."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How the workers are placed and what they survive."""

    max_failures: int = setting(3, low=0)
    """How many failures of workers in a row, without a new checkpoint between them, a run recovers from."""
    cpus_per_worker: int | None = setting(None, low=1)
    """CPU cores per worker. None = the cores shared evenly: by the workers, or by the GPUs if there are more."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run, whole. `job` and `preset` name where the defaults come from.

    A kind of task has a subclass, with fields `model` and `task`.
    """

    task_class: ClassVar[Any]
    """The kind of task: a subclass of crayon.Task, or where one is, as "module:Class", to be imported when needed."""
    needs_labels: ClassVar[bool] = False
    """Whether training can't do without classes."""

    job: str = setting("", flag=False)
    own_task: Any = setting(None, recorded=False)
    """The subclass of crayon.Task that a job names in place of `task_class`."""
    network: Any = setting(None, recorded=False)
    """What makes the network of a job that doesn't use its task's own: (`model`, crayon.DataInfo) to nn.Module."""
    given: frozenset[str] = setting(frozenset(), recorded=False)
    """Dotted names of what was asked for and so isn't fitted to the data (crayon.tasks.recipe)."""
    preset: str = "quick"
    """instant = a first look, within a minute on two CPU cores; quick = minutes there; full = best quality on one or
    more GPUs."""
    name: str | None = None
    """The run's name under `storage`. The same command with the same name resumes it."""
    storage: str = "runs"
    """Folder, or s3:// or gs:// URI, that holds the runs."""
    workers: int | str = 1
    """Ray Train workers. 0 = train in this process, without Ray. 1..4 = elastic: as many as the cluster has room for,
    fewer when it loses some and more when they come back."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto = GPU when there is one. mps = Apple's GPU, with --workers 0; it was not tried."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs convolutions and matrix products in bfloat16; weights stay float32. auto = bf16 where the processor or
    GPU computes it, and doesn't emulate it many times slower; decided once, when a run first starts."""
    threads: int | None = setting(None, low=1)
    """CPU threads of each worker. None = as many of its cores as are measured to be fastest beside whatever else runs
    on the machine. Results depend on it in the last bits."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases. auto = online when logged in, else offline."""
    wandb_project: str = field(default_factory=lambda: os.environ.get("WANDB_PROJECT") or "crayon")
    """Project the run is logged to; WANDB_PROJECT, where it is set, else crayon."""
    init_from: str | None = None
    """Begin with the weights of another run (its folder, or s3:// or gs:// address), or of a .safetensors file, as far
    as names and shapes fit."""
    seed: int = 0
    """Decides initial weights, order, augmentation, latents."""
    epochs: int = setting(10, low=1)
    """Passes over the training images."""
    lr: float = setting(1e-3, above=0, may_change=True)
    """Peak learning rate of Adam, shared by all networks of the job."""
    beta1: float = setting(0.9, low=0, below=1, may_change=True)
    """Adam's momentum, shared by all networks of the job."""
    changes: str = ""
    """Other values from an epoch on, each as EPOCHS:SETTING=VALUE: "3:lr=2e-3 3:beta1=0.4 6:lr=1e-3" changes two after
    3 epochs and one after 6. `lr` is the peak, of which warm-up and `optim.schedule` make each step's. Those that may
    change: lr, beta1, task.gamma (GAN), and augment.* but for flip and trivial."""
    global_batch_size: int = setting(128, low=1)
    """Images per step, over all workers together."""
    sync_batchnorm: Literal["auto", "on", "off"] = "auto"
    """BatchNorm by the statistics of all workers' images (on), which makes a model the same on any number of workers
    and costs two messages a layer, or of each worker's own (off). auto = on where a worker has fewer than 32 images."""
    channels_last: bool = True
    """Keep activations in NHWC order, which most convolution kernels prefer."""
    compile: bool = False
    """Fuse the networks' operations with torch.compile, which takes up to a minute at the start of every attempt."""
    cuda_graph: bool = True
    """On GPUs, launch the kernels of a step as a CUDA graph instead of one by one."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def check(self) -> None:
        """Raise BadInput for what the kind of task can't work with, before images are read."""

    @property
    def abilities(self) -> tuple[str, ...]:
        """What trained models can do, which decides which commands there are for them: classify, encode, reconstruct
        (encode and decode), generate (decode standard normal codes), edit (with the generator of
        crayon.tasks.adversarial). A subclass says it as `abilities = ("encode",)`."""
        return tuple(getattr(self.own_task, "abilities", ()))

    @property
    def min_workers(self) -> int:
        """The fewest workers that train this: `workers`, or the lower end of an elastic range."""
        return worker_range(self.workers)[0]

    @property
    def max_workers(self) -> int:
        """The most workers that train this: `workers`, or the upper end of an elastic range."""
        return worker_range(self.workers)[1]


def worker_range(workers: int | str) -> tuple[int, int]:
    """(fewest, most) workers. Raises ValueError for what is neither a number nor a range.

    >>> worker_range(2), worker_range("1..4")
    ((2, 2), (1, 4))
    """
    low, dots, high = str(workers).partition("..")
    return int(low), int(high if dots else low)
