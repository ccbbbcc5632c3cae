"""Every setting, once. The field's dotted path is its name on the command line, in W&B, Optuna and checkpoints.

This module imports neither torch nor Ray, so that `--help` and bad input answer at once. Optional[T], not T | None: for
the latter tyro imports typeguard, and with it asyncio, in every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional, Union

Scalar = int | float | bool | str | None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are fed."""

    source: str = "mnist"
    """mnist, cifar10, celeba, digits, shapes, faces (the last three need no download) or folder."""
    root: Optional[str] = None
    """Folder with the downloaded set, or with your own images for `folder`. Default: the user's cache."""
    image_size: int = 28
    """Height and width in pixels; other sizes are centre-cropped to a square and resized."""
    channels: Literal[1, 3] = 1
    """1 = grey, 3 = RGB."""
    size: Optional[int] = None
    """Train on only this many of the images, held out from all of them as ever; or render this many for the procedural
    sets. None = all."""
    val_fraction: float = 0.08
    """Share of the training images held out to select by. The test split is never selected on."""
    residency: Literal["auto", "device", "stream"] = "auto"
    """Keep all images on the device, or stream them from a memory map. auto = device when they fit."""
    max_unreadable: float = 0.05
    """Largest share of unreadable files that is skipped; more is an error."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, drawn anew for each image and epoch."""

    flip: bool = False
    """Mirror half of the images horizontally, in the next epoch the other half."""
    shift: int = 0
    """Translate by up to this many pixels in each direction, edges reflected."""
    rotate: float = 0.0
    """Rotate by up to this many degrees either way."""
    zoom: float = 0.0
    """Scale by a factor within 1 - zoom .. 1 + zoom."""
    cutout: int = 0
    """Side in pixels of a square painted with the mean colour; 0 = none."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam with decoupled weight decay, one instance per network, all with the same `lr` and `beta1`."""

    beta2: float = 0.99
    """Decay of the second-moment estimate."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Decoupled, applied to weights of two or more dimensions only."""
    bias_lr_factor: float = 1.0
    """Learning rate of biases and normalisation gains, in multiples of `lr`."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises linearly from 0 to `lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """What follows the warm-up; linear and cosine end at `lr * final`."""
    final: float = 0.0
    """Learning rate at the end, as a share of `lr`."""
    clip: float = 0.0
    """Largest gradient norm per network; 0 = no clipping."""
    ema_images: float = 0.0
    """Half-life, in images, of the averaged weights used for evaluation; 0 = evaluate the raw weights."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When and how the validation split is looked at."""

    every_epochs: int = 1
    """Evaluate after every this many epochs, and after the last."""
    batch_size: int = 500
    """Images per evaluation batch and worker."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What survives a crash."""

    every_epochs: int = 1
    """Write a checkpoint after every this many epochs, and after the last."""
    every_minutes: float = 5.0
    """Write one in the middle of an epoch when the last is this old; 0 = only at epoch ends."""
    keep: int = 2
    """How many of the newest to keep, beside the best."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How the workers are placed and what they survive."""

    max_failures: int = 3
    """How many worker failures a run recovers from before it gives up."""
    cpus_per_worker: Optional[int] = None
    """CPU cores per worker. None = the node's cores shared evenly (1 with a GPU)."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A convolutional network: convolution, BatchNorm, activation, max pooling, dropout, dense."""

    width: int = 32
    """Channels of the first stage."""
    growth: int = 4
    """Every later stage has `width * growth` channels."""
    depth: int = 2
    """Convolutions per stage; from 3 on they are residual."""
    activation: Literal["relu", "gelu"] = "relu"
    """gelu = smoother, slower and, on photographs, more exact."""
    stem_stride: Literal[1, 2] = 1
    """2 = halve the resolution before the first convolution: several times faster, a little less exact."""
    dropout: float = 0.1
    """Probability of dropping a feature before the dense layer."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Cross-entropy on integer labels."""

    label_smoothing: float = 0.0
    """Share of the target probability spread over all classes."""
    tta: bool = False
    """Evaluate the mean prediction for the image and its mirror image (test-time augmentation)."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A convolutional encoder and decoder with a vector in between."""

    latent_dim: int = 32
    """Length of the code between the two halves."""
    width: int = 32
    """Channels at half resolution; each further halving doubles them, up to four times this."""
    depth: int = 1
    """Convolutions in each residual block; there is one block per resolution in either half."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Mean squared error between the image and its reconstruction."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the input, not to the target (denoising variant)."""
    mask: float = 0.0
    """Share of the input's 4x4 patches blanked out (masking variant)."""
    latent_noise: float = 0.0
    """Standard deviation of Gaussian noise added to the standardised code in training: close codes decode alike."""


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """Generator and discriminator."""

    latent_dim: int = 64
    """Length of the generator's seed vector."""
    width: int = 32
    """Channels at half the image's resolution; each further halving doubles them, up to 512."""
    discriminator_width: int = 0
    """The same for the discriminator. 0 = `width`."""
    discriminator_norm: Literal["auto", "none", "batch"] = "auto"
    """batch = normalise the discriminator's features over the batch. auto = batch for the classic loss without a
    gradient penalty, else none."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The game between generator and discriminator."""

    loss: Literal["classic", "relativistic"] = "classic"
    """classic = non-saturating BCE (Goodfellow et al. 2014); relativistic = R3GAN (Huang et al. 2024)."""
    gamma: float = 0.0
    """Weight of the gradient penalties R1 and R2; they are computed as gamma / 2 * |grad|^2."""
    diffaugment: Literal["auto", "on", "off"] = "auto"
    """Augment real and generated images alike (Zhao et al. 2020). auto = on under 30,000 images that are each seen
    50 times or more."""
    extractor: Literal["auto", "crayon64", "inception2015"] = "auto"
    """Network whose features distances are measured in. auto = inception2015 if its weights are on this machine;
    decided once, when a run first starts."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run, whole. `job` and `preset` name where the defaults come from."""

    job: str
    preset: str = "quick"
    """instant = a first look, within a minute on two CPU cores; quick = minutes there; full = best quality on one or
    more GPUs."""
    name: Optional[str] = None
    """The run's name under `storage`. The same command with the same name resumes it."""
    storage: str = "runs"
    """Folder, or s3:// or gs:// URI, that holds the runs."""
    workers: Union[int, str] = 1
    """Ray Train workers. 0 = train in this process, without Ray. 1..4 = elastic: as many as the cluster has room for,
    fewer when it loses some and more when they come back."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto = GPU when there is one. mps = Apple's GPU, with --workers 0; it was not tried."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs convolutions and matrix products in bfloat16; weights stay float32. auto = bf16 where the processor or
    GPU computes it, and doesn't emulate it many times slower; decided once, when a run first starts."""
    threads: Optional[int] = None
    """CPU threads of each worker. None = as many of its cores as are measured to be fastest beside whatever else runs
    on the machine. Results depend on it in the last bits."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases. auto = online when logged in, else offline."""
    wandb_project: str = "crayon"
    """Project the run is logged to."""
    seed: int = 0
    """Decides initial weights, order, augmentation, latents."""
    epochs: int = 10
    """Passes over the training images."""
    lr: float = 1e-3
    """Peak learning rate of Adam, shared by all networks of the job."""
    beta1: float = 0.9
    """Adam's momentum, shared by all networks of the job."""
    global_batch_size: int = 128
    """Images per step, over all workers together."""
    channels_last: bool = True
    """Keep activations in NHWC order, which most convolution kernels prefer."""
    compile: bool = False
    """Fuse the networks' operations with torch.compile, which takes up to a minute at the start of every attempt."""
    cuda_graph: bool = True
    """On one GPU, launch the kernels of a step as one CUDA graph instead of one by one."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    @property
    def min_workers(self) -> int:
        """The fewest workers that train this: `workers`, or the lower end of an elastic range."""
        return worker_range(self.workers)[0]

    @property
    def max_workers(self) -> int:
        """The most workers that train this: `workers`, or the upper end of an elastic range."""
        return worker_range(self.workers)[1]


@dataclass(frozen=True, kw_only=True)
class ClassificationExperiment(Experiment):
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    task: ClassificationConfig = field(default_factory=ClassificationConfig)


@dataclass(frozen=True, kw_only=True)
class ReconstructionExperiment(Experiment):
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    task: ReconstructionConfig = field(default_factory=ReconstructionConfig)


@dataclass(frozen=True, kw_only=True)
class AdversarialExperiment(Experiment):
    model: GanConfig = field(default_factory=GanConfig)
    task: AdversarialConfig = field(default_factory=AdversarialConfig)


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """What is done to a run on purpose."""

    kill: str = "worker,driver"
    """What to break, of: worker (kill -9), pause (a worker stands still for ten seconds), driver (kill -9 of the
    command), stop (Ctrl-C), node (kill -9 of all that Ray runs on a machine with a worker)."""
    times: int = 4
    """How often, in turn, each at a random moment."""
    chaos_seed: int = 0
    """Decides the moments and the victims."""


def worker_range(workers: int | str) -> tuple[int, int]:
    """(fewest, most) workers. Raises ValueError for what is neither a number nor a range.

    >>> worker_range(2), worker_range("1..4")
    ((2, 2), (1, 4))
    """
    low, dots, high = str(workers).partition("..")
    return int(low), int(high if dots else low)


def needs_labels(config: Experiment) -> bool:
    """Whether the job can't do without class folders."""
    return isinstance(config, ClassificationExperiment)
