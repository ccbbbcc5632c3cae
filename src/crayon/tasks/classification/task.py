"""Classification: cross-entropy on integer labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput, one_line
from crayon.report import plots
from crayon.rng import Randomness
from crayon.tasks.base import Loss, Monitor, Networks, Seen, Statistics, Task
from crayon.tasks.classification.metrics import calibration, classification_metrics, classification_sums
from crayon.tasks.classification.network import Classifier
from crayon.tasks.classification.settings import ClassificationExperiment

if TYPE_CHECKING:
    from crayon.tasks.classification.mixing import Mixing

BALANCED = "balanced_accuracy"
MISTAKES = 32
"""How many mistakes are shown."""


def statistics(probabilities: Tensor, labels: Tensor) -> Statistics:
    """Sums for the figures; as rows `labels` and `predicted` int64 (B,) and `confidence` float32 (B,), the predicted
    class's probability. probabilities: float32 (B, K)."""
    confidence, predicted = probabilities.max(1)
    rows = {"labels": labels, "predicted": predicted, "confidence": confidence}
    return Statistics(classification_sums(probabilities, labels), rows)


def check_outputs(network: nn.Module, info: DataInfo) -> None:
    """Raise BadInput unless a network of one's own gives logits (B, K) of images (B, C, H, W)."""
    images = torch.zeros(2, *info.shape)
    wanted = (2, len(info.classes))
    try:
        with torch.no_grad():
            given = tuple(network.eval()(images).shape)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadInput(
            f"The job's network fails on images {tuple(images.shape)}: {one_line(error)}."
        ) from error
    finally:
        network.train()
    if given != wanted:
        raise BadInput(
            f"The job's network makes {given} of images {tuple(images.shape)}; a classifier makes logits {wanted}, one "
            "for each class."
        )


class ClassificationTask(Task):
    """A classifier, its loss, figures and pictures. Raises BadInput where the data has fewer than two classes."""

    @classmethod
    def comparable(
        cls,
        experiment: ClassificationExperiment,
        metric: str = "",
        info: Callable[[], DataInfo | None] = lambda: None,
    ) -> tuple[Any, Monitor]:
        name: Any = experiment.task.monitor
        if name == "auto":
            name = metric if metric in ("accuracy", BALANCED) else ""
            name = name or (BALANCED if (found := info()) and found.unbalanced else "accuracy")
        decided = replace(experiment, task=replace(experiment.task, monitor=name))
        return decided, (name, "max")

    def __init__(self, experiment: ClassificationExperiment, info: DataInfo):
        if len(info.classes) < 2:
            found = f"only the class {info.classes[0]!r}" if info.classes else "no classes"
            raise BadInput(
                f"A classifier needs images of at least two classes and {info.source or 'the data'} has {found}; "
                "put the images of each class into a folder of its own."
            )
        network = (experiment.network or Classifier.build)(experiment.model, info)
        if experiment.network is not None:
            check_outputs(network, info)
        self.networks = nn.ModuleDict({"classifier": network})
        self.config, self.info = experiment.task, info
        self.balanced = self.config.monitor == BALANCED
        self.monitor = (BALANCED if self.balanced else "accuracy", "max")
        self.even_classes = self.config.balance == "sampling"
        self.weights: Tensor | None = None
        if self.config.balance == "weights" and info.counts:
            some = sum(count > 0 for count in info.counts)
            weights = [sum(info.counts) / (some * max(count, 1)) for count in info.counts]
            self.weights = torch.tensor(weights, device="cpu")
        self.mixing: Mixing | None = None
        if self.config.mixup or self.config.cutmix:
            from crayon.tasks.classification.mixing import Mixing  # imports scipy

            self.mixing, self.together = Mixing(self.config.mixup, self.config.cutmix), 2

    def loss(self, phase: str, nets: Networks, batch: Batch, rng: Randomness) -> Loss:
        """Mean cross-entropy in nats; logs `accuracy` on the (augmented) training batch. Of mixed images both labels
        count, by their shares."""
        if self.mixing is None:
            logits = nets[phase](batch.images)
            loss = self._cross_entropy(logits, batch.labels)
            accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
            return loss, {"accuracy": accuracy}
        images, partner, own = self.mixing(batch.images, rng, batch.positions)
        logits = nets[phase](images)
        predicted = logits.detach().argmax(1)
        loss, accuracy = torch.zeros((), device=logits.device), torch.zeros((), device=logits.device)
        for labels, share in ((batch.labels, own), (batch.labels[partner], 1 - own)):
            loss = loss + self._cross_entropy(logits, labels, share)
            accuracy = accuracy + (share * (predicted == labels)).mean()
        return loss, {"accuracy": accuracy}

    def _cross_entropy(self, logits: Tensor, labels: Tensor, share: Tensor | None = None) -> Tensor:
        """The mean over the batch, in which each image counts by its `share` (B,) and its class's weight. Over all
        training images the mean weight is 1, so workers' means add up to that of the global batch."""
        smoothing = self.config.label_smoothing
        if share is None and self.weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        if share is not None:
            each = share * each
        if self.weights is not None:
            self.weights = self.weights.to(
                logits.device
            )  # once: a recorded step copies nothing from the host
            each = self.weights[labels] * each
        return each.mean()

    def evaluate(self, nets: Networks, batch: Batch, rng: Randomness) -> Statistics:
        """See `statistics`."""
        return statistics(self.classify(nets, batch.images), batch.labels)

    def classify(self, nets: Networks, images: Tensor) -> Tensor:
        """Class probabilities float32 (B, K), averaged with the mirror image's under `task.tta`."""
        network = nets["classifier"]
        probabilities = network(images).softmax(1)
        if self.config.tta:
            probabilities = (probabilities + network(images.flip(3)).softmax(1)) / 2
        return probabilities

    def summarize(self, stats: Statistics, train: Statistics | None = None) -> dict[str, float]:
        """See `classification_metrics`."""
        return classification_metrics(stats.sums, self.info.classes, self.balanced)

    def pictures(self, nets: Networks, seen: Seen, train: Seen | None = None) -> dict[str, Image]:
        """`confusion_matrix`, `reliability`, and `mistakes`: the most confident ones, each with its true class, the
        predicted one and that one's probability."""
        stats, classes = seen.stats, self.info.classes
        pictures = {
            "confusion_matrix": plots.confusion_matrix(stats.sums["confusion"].cpu().numpy(), classes),
            "reliability": plots.reliability(*calibration(stats.sums)),
        }
        wrong = (stats.rows["predicted"] != stats.rows["labels"]).nonzero()[:, 0]
        # The most confident mistakes.
        chosen = wrong[stats.rows["confidence"][wrong].argsort(descending=True, stable=True)][:MISTAKES]
        if len(chosen):
            columns = (stats.rows[name][chosen].tolist() for name in ("labels", "predicted", "confidence"))
            titles = [
                f"{classes[true]}\n→ {classes[predicted]}\n{100 * confidence:.0f} %"
                for true, predicted, confidence in zip(*columns, strict=True)
            ]
            scale = -(-112 // self.info.shape[2])  # wide enough for the words
            pictures["mistakes"] = plots.image_grid(seen.show(chosen).images, titles, columns=8, scale=scale)
        return pictures
