"""The jobs and their presets.

`quick` ends in minutes on two CPU cores, and its settings were chosen on the validation split. `instant` is a first
look and trains for a second (MNIST) to half a minute there; the classifiers' was chosen on the validation split, too.
`full` is for one modern GPU or several. CIFAR-10's was chosen on the validation split as well (benchmarks/LOG.md); for
MNIST and the autoencoder it is `quick` with a larger network and more epochs, not tuned.
"""

from __future__ import annotations

from typing import NamedTuple

from crayon.config.names import override
from crayon.config.settings import AugmentConfig, DataConfig, EvalConfig, Experiment, OptimConfig, Scalar
from crayon.errors import BadInput
from crayon.tasks.adversarial.settings import AdversarialExperiment
from crayon.tasks.classification.settings import (
    ClassificationConfig,
    ClassificationExperiment,
    ClassifierConfig,
)
from crayon.tasks.reconstruction.settings import ReconstructionConfig, ReconstructionExperiment

PRESETS = ("instant", "quick", "full")


class Job(NamedTuple):
    """A job's defaults."""

    about: str
    quick: Experiment
    instant: dict[str, Scalar]
    full: dict[str, Scalar]
    """What the other presets change, by dotted name."""


JOBS = {
    "mnist": Job(
        "Handwritten digits, 28x28 grey, 10 classes.",
        quick=ClassificationExperiment(
            job="mnist",
            epochs=8,
            lr=4e-3,
            global_batch_size=256,
            data=DataConfig(source="mnist", image_size=28, channels=1),
            augment=AugmentConfig(shift=2, rotate=10, zoom=0.1),
            optim=OptimConfig(schedule="linear", weight_decay=0.05, ema_images=5_000),
            model=ClassifierConfig(width=16, growth=4, dropout=0.1),
            task=ClassificationConfig(label_smoothing=0.05),
        ),
        # 200 steps on as many images as that takes: a third of the training set.
        instant={
            "epochs": 1,
            "lr": 0.012,
            "beta1": 0.8,
            "global_batch_size": 100,
            "data.size": 20_000,
            "augment.shift": 0,
            "augment.rotate": 0.0,
            "augment.zoom": 0.0,
            "optim.beta2": 0.98,
            "optim.ema_images": 0.0,
            "model.stem_stride": 2,
            "task.label_smoothing": 0.0,
        },
        full={
            "epochs": 40,
            "model.width": 32,
            "model.depth": 3,
            "model.dropout": 0.2,
            "optim.ema_images": 50_000.0,
            "eval.batch_size": 1000,
        },
    ),
    "cifar10": Job(
        "Small photographs, 32x32 RGB, 10 classes.",
        quick=ClassificationExperiment(
            job="cifar10",
            epochs=14,
            lr=3e-3,
            global_batch_size=256,
            data=DataConfig(source="cifar10", image_size=32, channels=3),
            augment=AugmentConfig(flip=True, shift=2),
            optim=OptimConfig(schedule="linear", warmup=0.05, weight_decay=0.05, ema_images=5_000),
            model=ClassifierConfig(width=32, growth=4, dropout=0.1),
            task=ClassificationConfig(label_smoothing=0.1, tta=True),
        ),
        instant={
            "epochs": 1,
            "lr": 8e-3,
            "beta1": 0.8,
            "global_batch_size": 128,
            "augment.shift": 0,
            "optim.beta2": 0.98,
            "optim.warmup": 0.2,
            "optim.ema_images": 0.0,
            "model.width": 16,
            "task.label_smoothing": 0.0,
        },
        full={
            "epochs": 16,
            "lr": 4e-3,
            "beta1": 0.85,
            "global_batch_size": 512,
            "model.width": 64,
            "model.activation": "gelu",
            "model.dropout": 0.0,
            "optim.warmup": 0.2,
            "optim.weight_decay": 1.0,
            "optim.bias_lr_factor": 8.0,
            "optim.ema_images": 0.0,
            "task.label_smoothing": 0.2,
            "eval.batch_size": 1000,
        },
    ),
    "autoencoder": Job(
        "Compresses a digit to 32 numbers and back.",
        quick=ReconstructionExperiment(
            job="autoencoder",
            epochs=8,
            lr=3e-3,
            global_batch_size=256,
            data=DataConfig(source="mnist", image_size=28, channels=1),
            optim=OptimConfig(schedule="linear"),
            task=ReconstructionConfig(latent_noise=0.1),
        ),
        instant={"epochs": 1, "global_batch_size": 128},
        full={
            "epochs": 60,
            "lr": 2e-3,
            "model.width": 64,
            "model.depth": 2,
            "optim.ema_images": 50_000.0,
            "eval.batch_size": 1000,
        },
    ),
    "gan": Job(
        "Invents faces from random seed vectors.",
        quick=AdversarialExperiment(
            job="gan",
            epochs=18,
            lr=1e-3,
            beta1=0.5,
            global_batch_size=32,
            data=DataConfig(source="faces", image_size=48, channels=3),
            optim=OptimConfig(schedule="constant", warmup=0.02, ema_images=5_000),
            eval=EvalConfig(every_epochs=2),
        ),
        instant={
            "epochs": 5,
            "data.image_size": 32,
            "eval.every_epochs": 1,
        },
        # From the quick preset and the literature; tried on a GPU for half of its epochs only (benchmarks/LOG.md).
        full={
            "epochs": 200,
            "lr": 5e-4,
            "global_batch_size": 128,
            "data.image_size": 64,
            "model.width": 64,
            "model.latent_dim": 128,
            "optim.ema_images": 50_000.0,
            "optim.schedule": "linear",
            "optim.final": 0.1,
            "eval.every_epochs": 10,
            "checkpoint.every_epochs": 10,
        },
    ),
}


def space(config: Experiment) -> dict[str, str]:
    """What a sweep of this job searches by default, by dotted name (see crayon.tune.space).

    The ranges lie around `config`'s own values, which the first trial has.
    """
    return {
        "epochs": f"{max(1, round(0.4 * config.epochs))}..{max(2, round(1.5 * config.epochs))}",
        "lr": f"{config.lr / 8:.1g}..{config.lr * 5:.1g}:log",
        "beta1": "0..0.9" if config.job == "gan" else "0.7..0.98",
    }


def get(job: str, preset: str = "quick") -> Experiment:
    """The experiment that `job` runs by default under `preset`. Raises BadInput for names that don't exist."""
    if job not in JOBS:
        raise BadInput(f"There is no job {job!r}; the jobs are {', '.join(JOBS)}.")
    if preset not in PRESETS:
        raise BadInput(f"There is no preset {preset!r} for {job}; choose --preset {' or '.join(PRESETS)}.")
    changes = {"quick": {}, "instant": JOBS[job].instant, "full": JOBS[job].full}[preset]
    return override(JOBS[job].quick, {"preset": preset, **changes})
