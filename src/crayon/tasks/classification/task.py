"""Classification: cross-entropy on integer labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, DataInfo, Show
from crayon.errors import BadInput
from crayon.report import plots
from crayon.rng import Randomness
from crayon.tasks.base import Export, Networks, Statistics
from crayon.tasks.classification.metrics import calibration, classification_metrics, classification_sums
from crayon.tasks.classification.network import Classifier
from crayon.tasks.classification.settings import ClassificationConfig, ClassificationExperiment

MISTAKES = 32
"""How many mistakes are shown."""
SECONDARY_METRICS: tuple[str, ...] = ()
"""See crayon.tasks.secondary_metrics."""


def build_task(experiment: ClassificationExperiment, info: DataInfo) -> ClassificationTask:
    """The task with a fresh classifier. Raises BadInput where the data has fewer than two classes."""
    if len(info.classes) < 2:
        found = f"only the class {info.classes[0]!r}" if info.classes else "no classes"
        raise BadInput(
            f"A classifier needs images of at least two classes and {info.source or 'the data'} has {found}; "
            "put the images of each class into a folder of its own."
        )
    network = Classifier(
        experiment.model, image_size=info.image_size, channels=info.channels, classes=len(info.classes)
    )
    return ClassificationTask(network, experiment.task, info.classes)


def monitor(experiment: ClassificationExperiment) -> tuple[str, Literal["min", "max"]]:
    """See crayon.tasks.monitor."""
    return "accuracy", "max"


def comparable(experiment: ClassificationExperiment, metric: str) -> ClassificationExperiment:
    """See crayon.tasks.comparable."""
    return experiment


def statistics(probabilities: Tensor, labels: Tensor) -> Statistics:
    """Sums for the figures; as rows `labels` and `predicted` int64 (B,) and `confidence` float32 (B,), the predicted
    class's probability. probabilities: float32 (B, K)."""
    confidence, predicted = probabilities.max(1)
    rows = {"labels": labels, "predicted": predicted, "confidence": confidence}
    return Statistics(classification_sums(probabilities, labels), rows)


class ClassificationTask:
    """A classifier, its loss, figures and pictures."""

    monitor: tuple[str, Literal["min", "max"]] = ("accuracy", "max")
    summarizes_rows = False
    evaluates_train = True

    def __init__(self, network: Classifier, config: ClassificationConfig, classes: tuple[str, ...]):
        self.networks = nn.ModuleDict({"classifier": network})
        self.config, self.classes = config, classes

    def prepare(self) -> None:
        """Nothing."""

    def loss(
        self, phase: str, nets: Networks, batch: Batch, rng: Randomness
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy in nats; logs `accuracy` on the (augmented) training batch."""
        logits = nets[phase](batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        return loss, {"accuracy": accuracy}

    def evaluate(self, nets: Networks, batch: Batch, rng: Randomness) -> Statistics:
        """See `statistics`."""
        return statistics(self.predict(nets["classifier"], batch.images), batch.labels)

    def predict(self, network: nn.Module, images: Tensor) -> Tensor:
        """Class probabilities float32 (B, K), averaged with the mirror image's under `task.tta`."""
        probabilities = network(images).softmax(1)
        if self.config.tta:
            probabilities = (probabilities + network(images.flip(3)).softmax(1)) / 2
        return probabilities

    def summarize(self, stats: Statistics, train: Statistics | None = None) -> dict[str, float]:
        """See `classification_metrics`."""
        return classification_metrics(stats.sums, self.classes)

    def progress_image(self, nets: Networks, device: torch.device) -> Image | None:
        return None

    def example_indices(self, stats: Statistics) -> Tensor:
        """Where in the split the most confident mistakes are, the most confident first: int64 (up to 32,)."""
        wrong = (stats.rows["predicted"] != stats.rows["labels"]).nonzero()[:, 0]
        return wrong[stats.rows["confidence"][wrong].argsort(descending=True, stable=True)][:MISTAKES]

    def pictures(
        self,
        nets: Networks,
        stats: Statistics,
        show: Show,
        train: Statistics | None = None,
        show_train: Show | None = None,
    ) -> dict[str, Image]:
        """`confusion_matrix`, `reliability`, and `mistakes`: the most confident ones, each with its true class, the
        predicted one and that one's probability."""
        pictures = {
            "confusion_matrix": plots.confusion_matrix(stats.sums["confusion"].cpu().numpy(), self.classes),
            "reliability": plots.reliability(*calibration(stats.sums)),
        }
        chosen = self.example_indices(stats)
        if len(chosen):
            columns = (stats.rows[name][chosen].tolist() for name in ("labels", "predicted", "confidence"))
            titles = [
                f"{self.classes[true]}\n→ {self.classes[predicted]}, {100 * confidence:.0f} %"
                for true, predicted, confidence in zip(*columns, strict=True)
            ]
            images = show(chosen).images
            # Wide enough for the words.
            scale = -(-112 // images.shape[3])
            pictures["mistakes"] = plots.image_grid(images, titles, columns=8, scale=scale)
        return pictures

    def exports(self, nets: Networks) -> dict[str, Export]:
        """`classifier`: probabilities as `predict` gives them."""
        network = nets["classifier"]
        channels, side = network.channels, network.image_size
        about = (
            f"images float32 (batch, {channels}, {side}, {side}) in [0, 1] to probabilities float32 "
            f"(batch, {len(self.classes)})"
        )
        example = Randomness(0, "example").uniform(torch.arange(2), channels * side * side)
        example = example.view(2, channels, side, side)
        return {"classifier": Export(Predict(self, network), "images", "probabilities", about, example)}


class Predict(nn.Module):
    """The task's `predict` as a module."""

    def __init__(self, task: ClassificationTask, network: nn.Module):
        super().__init__()
        self.network, self.predict = network, task.predict

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.network, images)
