"""Settings of classifiers. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crayon.config.fields import setting
from crayon.config.settings import Experiment


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A convolutional network: convolution, BatchNorm, activation, max pooling, dropout, dense."""

    width: int = setting(32, low=1)
    """Channels of the first stage."""
    growth: int = setting(4, low=1)
    """Every later stage has `width * growth` channels."""
    depth: int = setting(2, low=1)
    """Convolutions per stage; from 3 on they are residual."""
    activation: Literal["relu", "gelu"] = "relu"
    """gelu = smoother, slower and, on photographs, more exact."""
    stem_stride: Literal[1, 2] = 1
    """2 = halve the resolution before the first convolution: several times faster, a little less exact."""
    dropout: float = setting(0.1, low=0, high=1)
    """Probability of dropping a feature before the dense layer."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Cross-entropy on integer labels."""

    label_smoothing: float = setting(0.0, low=0, high=1)
    """Share of the target probability spread over all classes."""
    mixup: float = setting(0.0, low=0)
    """Blend each image, and its label, with another one of its batch (mixup): parameter of the beta distribution of the
    shares, such as .2; 0 = none."""
    cutmix: float = setting(0.0, low=0)
    """Paste a box of another image of the batch into each one, and its label with the box's share (CutMix): parameter
    of the beta distribution of the shares, such as 1; 0 = none. With mixup, each image gets one or the other."""
    balance: Literal["auto", "none", "weights", "sampling"] = "auto"
    """What is done about classes of different sizes: weights = each counts alike in the loss, by weights of its images;
    sampling = each is shown equally often. auto = weights where they differ by more than a factor of 3, else none."""
    monitor: Literal["auto", "accuracy", "balanced_accuracy"] = "auto"
    """What the best weights, and a sweep's trials, are chosen by on the validation split. balanced_accuracy = the mean
    over the classes of the share of their images that is right. auto = that where classes differ by more than a factor
    of 3, else accuracy."""
    tta: bool = False
    """Evaluate the mean prediction for the image and its mirror image (test-time augmentation)."""


@dataclass(frozen=True, kw_only=True)
class ClassificationExperiment(Experiment):
    task_class = "crayon.tasks.classification.task:ClassificationTask"
    abilities = ("classify",)
    needs_labels = True

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    task: ClassificationConfig = field(default_factory=ClassificationConfig)
