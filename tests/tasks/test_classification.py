import numpy as np
import pytest
import torch
from helpers import tiny
from sklearn.metrics import classification_report, log_loss

from crayon.data.types import Batch, DataInfo
from crayon.errors import BadInput
from crayon.rng import Randomness
from crayon.tasks.base import Seen
from crayon.tasks.classification.metrics import classification_metrics, classification_sums
from crayon.tasks.classification.task import ClassificationTask, statistics

CLASSES = ("cat", "dog", "owl", "yak")
RNG = Randomness(0)


def build(classes=CLASSES, **changes):
    torch.manual_seed(0)
    config = tiny("mnist", **{"task__label_smoothing": 0.0} | changes)
    return ClassificationTask(config, DataInfo(16, 3, classes, 100, "shapes"))


def random_batch(n):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, 16, 16, generator=generator)
    return Batch(images, torch.randint(4, (n,), generator=generator), torch.arange(n))


def random_predictions(n=500):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (n,), generator=generator)
    logits = torch.randn(n, 4, generator=generator)
    logits[torch.arange(n), labels] += 1.5
    return logits.softmax(1), labels


def test_figures_equal_scikit_learns():
    probabilities, labels = random_predictions()
    metrics = classification_metrics(classification_sums(probabilities, labels), CLASSES)
    predicted = probabilities.argmax(1)
    report = classification_report(labels, predicted, target_names=CLASSES, output_dict=True, zero_division=0)
    assert metrics["accuracy"] == pytest.approx(report["accuracy"], abs=1e-12)
    for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert metrics[ours] == pytest.approx(report["macro avg"][theirs], abs=1e-12)
        for name in CLASSES:
            assert metrics[f"{ours}/{name}"] == pytest.approx(report[name][theirs], abs=1e-12)
    normalised = (probabilities.double() / probabilities.double().sum(1, keepdim=True)).numpy()
    assert metrics["loss"] == pytest.approx(log_loss(labels, normalised), abs=1e-6)


def test_a_class_without_images_has_no_figures_and_no_part_in_the_means():
    probabilities = torch.eye(3)[[0, 0, 1]]
    metrics = classification_metrics(
        classification_sums(probabilities, torch.tensor([0, 0, 1])), ("a", "b", "c")
    )
    assert metrics["recall"] == metrics["precision"] == metrics["f1"] == 1.0
    assert "recall/c" not in metrics


def test_training_lowers_the_loss_and_evaluation_sees_it():
    task, batch = build(), random_batch(32)
    optimizer = torch.optim.Adam(task.networks.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, logged = task.loss("classifier", task.networks, batch, RNG)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert set(logged) == {"accuracy"} and not logged["accuracy"].requires_grad
    task.networks.eval()
    with torch.no_grad():
        stats = task.evaluate(task.networks, batch, RNG)
    accuracy = task.summarize(stats)["accuracy"]
    assert accuracy == float((stats.rows["predicted"] == stats.rows["labels"]).double().mean()) > 0.9


def test_label_smoothing_raises_the_floor_of_the_loss():
    batch = random_batch(8)
    plain, smoothed = (
        build(task__label_smoothing=s).loss("classifier", build().networks.eval(), batch, RNG)[0]
        for s in (0.0, 0.2)
    )
    logits = build().networks["classifier"].eval()(batch.images).log_softmax(1)
    expected = 0.8 * plain - 0.2 * logits.mean()
    assert torch.allclose(smoothed, expected, atol=1e-5)


def test_tta_makes_predictions_mirror_invariant():
    batch = random_batch(6)
    mirrored = batch._replace(images=batch.images.flip(3))
    for tta, same in ((True, True), (False, False)):
        task = build(task__tta=tta)
        task.networks.eval()
        with torch.no_grad():
            a, b = (task.classify(task.networks, x.images) for x in (batch, mirrored))
        assert torch.allclose(a, b, atol=1e-6) is same


def test_pictures_show_the_most_confident_mistakes_and_nothing_when_there_are_none():
    probabilities, labels = random_predictions()
    task, stats = build(), statistics(probabilities, labels)
    batch, shown = random_batch(len(labels)), []

    def show(chosen):
        shown.append(chosen.tolist())
        return Batch(batch.images[chosen], labels[chosen], chosen)

    pictures = task.pictures(task.networks, Seen(stats, show))
    confidence, predicted = probabilities.max(1)
    mistakes = (predicted != labels).nonzero()[:, 0].tolist()
    assert shown == [sorted(mistakes, key=lambda i: -float(confidence[i]))[:32]]
    assert set(pictures) == {"confusion_matrix", "reliability", "mistakes"}
    assert all(np.asarray(picture).std() > 0 for picture in pictures.values())
    perfect = statistics(torch.eye(4)[labels], labels)
    assert "mistakes" not in task.pictures(task.networks, Seen(perfect, show))


@pytest.mark.parametrize(("classes", "found"), [(("cat",), "only the class 'cat'"), ((), "no classes")])
def test_fewer_than_two_classes_are_bad_input(classes, found):
    with pytest.raises(BadInput, match=found):
        build(classes)
