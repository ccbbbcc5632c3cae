"""Classification: cross-entropy on integer labels."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput
from crayon.report import plots
from crayon.rng import Randomness
from crayon.tasks.base import Export, Loss, Networks, Seen, Statistics, Task, example_images
from crayon.tasks.classification.metrics import calibration, classification_metrics, classification_sums
from crayon.tasks.classification.network import Classifier
from crayon.tasks.classification.settings import ClassificationExperiment
from crayon.tasks.layers import Function

MISTAKES = 32
"""How many mistakes are shown."""


def statistics(probabilities: Tensor, labels: Tensor) -> Statistics:
    """Sums for the figures; as rows `labels` and `predicted` int64 (B,) and `confidence` float32 (B,), the predicted
    class's probability. probabilities: float32 (B, K)."""
    confidence, predicted = probabilities.max(1)
    rows = {"labels": labels, "predicted": predicted, "confidence": confidence}
    return Statistics(classification_sums(probabilities, labels), rows)


class ClassificationTask(Task):
    """A classifier, its loss, figures and pictures. Raises BadInput where the data has fewer than two classes."""

    monitor = ("accuracy", "max")

    def __init__(self, experiment: ClassificationExperiment, info: DataInfo):
        if len(info.classes) < 2:
            found = f"only the class {info.classes[0]!r}" if info.classes else "no classes"
            raise BadInput(
                f"A classifier needs images of at least two classes and {info.source or 'the data'} has {found}; "
                "put the images of each class into a folder of its own."
            )
        network = Classifier(
            experiment.model, image_size=info.image_size, channels=info.channels, classes=len(info.classes)
        )
        self.networks = nn.ModuleDict({"classifier": network})
        self.config, self.info = experiment.task, info

    def loss(self, phase: str, nets: Networks, batch: Batch, rng: Randomness) -> Loss:
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
        return classification_metrics(stats.sums, self.info.classes)

    def example_indices(self, stats: Statistics) -> Tensor:
        """Where in the split the most confident mistakes are, the most confident first: int64 (up to 32,)."""
        wrong = (stats.rows["predicted"] != stats.rows["labels"]).nonzero()[:, 0]
        return wrong[stats.rows["confidence"][wrong].argsort(descending=True, stable=True)][:MISTAKES]

    def pictures(self, nets: Networks, seen: Seen, train: Seen | None = None) -> dict[str, Image]:
        """`confusion_matrix`, `reliability`, and `mistakes`: the most confident ones, each with its true class, the
        predicted one and that one's probability."""
        stats, classes = seen.stats, self.info.classes
        pictures = {
            "confusion_matrix": plots.confusion_matrix(stats.sums["confusion"].cpu().numpy(), classes),
            "reliability": plots.reliability(*calibration(stats.sums)),
        }
        chosen = self.example_indices(stats)
        if len(chosen):
            columns = (stats.rows[name][chosen].tolist() for name in ("labels", "predicted", "confidence"))
            titles = [
                f"{classes[true]}\n→ {classes[predicted]}, {100 * confidence:.0f} %"
                for true, predicted, confidence in zip(*columns, strict=True)
            ]
            scale = -(-112 // self.info.image_size)  # wide enough for the words
            pictures["mistakes"] = plots.image_grid(seen.show(chosen).images, titles, columns=8, scale=scale)
        return pictures

    def exports(self, nets: Networks) -> dict[str, Export]:
        """`classifier`: probabilities as `predict` gives them."""
        images, example = example_images(self.info)
        about = f"{images} to probabilities float32 (batch, {len(self.info.classes)})"
        module = Function(nets["classifier"], functools.partial(self.predict, nets["classifier"]))
        return {"classifier": Export(module, "images", "probabilities", about, example)}
