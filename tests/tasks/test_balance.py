"""Classes of different sizes: figures, weights, and epochs that show every class equally often."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import tiny
from sklearn.metrics import balanced_accuracy_score

from crayon import tasks
from crayon.config.names import flatten
from crayon.data import ImageSet, Loader, Splits
from crayon.data.types import Batch, DataInfo
from crayon.report.words import headlines
from crayon.system.runfolder import RunFolder
from crayon.tasks.classification.metrics import classification_metrics, classification_sums
from crayon.tasks.classification.task import ClassificationTask
from crayon.training import worker

INFO = DataInfo(16, 3, tuple("abcde"), 100, "x", (60, 20, 10, 0, 10), True)


def task(**settings) -> ClassificationTask:
    return ClassificationTask(tiny("cifar10", **{f"task__{k}": v for k, v in settings.items()}), INFO)


def uneven(counts=(50, 13, 0, 4)) -> ImageSet:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n = len(labels)
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 6)
    return ImageSet("x/train", pixels, labels, tuple("abcd"))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(3))
def test_balanced_accuracy_is_scikit_learns_to_the_last_digit(seed):
    rng = np.random.default_rng(seed)
    true = rng.choice([0, 1, 2, 4], 997, p=[0.7, 0.2, 0.07, 0.03])
    given = torch.tensor(rng.random((997, 5)) + np.eye(5)[true] * 0.5)
    probabilities = (given / given.sum(1, keepdim=True)).float()
    metrics = classification_metrics(classification_sums(probabilities, torch.tensor(true)), list("abcde"))
    assert metrics["balanced_accuracy"] == balanced_accuracy_score(true, probabilities.argmax(1))
    assert metrics["balanced_accuracy"] == metrics["recall"] and metrics["n"] == 997
    assert [metrics[f"n/{c}"] for c in "abcde"] == np.bincount(true, minlength=5).tolist()
    told = headlines({f"val/{name}": value for name, value in metrics.items()})
    assert told[:2] == ["val/accuracy", "val/balanced_accuracy"] and "val/recall" not in told


def test_where_classes_are_alike_there_is_no_second_accuracy_unless_it_selects():
    labels = torch.arange(90) % 3
    sums = classification_sums(torch.eye(3)[labels], labels)
    assert "balanced_accuracy" not in classification_metrics(sums, "abc")
    assert classification_metrics(sums, "abc", balanced=True)["balanced_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("train", "val", "differ"),
    [((30, 10, 0), (3, 1, 0), False), ((31, 10, 1), None, True), ((30, 10, 10), (7, 2, 2), True)],
)
def test_what_counts_as_unbalanced(train, val, differ):
    info = Splits(uneven(train), val and uneven(val), None, "x").info()
    assert info.counts == (*train, 0) and info.unbalanced is differ


def test_weights_make_every_class_count_alike_and_an_image_as_before_on_average():
    weighted, plain = task(balance="weights", label_smoothing=0.0), task(label_smoothing=0.0)
    weights = weighted.weights
    assert weights[[0, 1, 2, 4]].tolist() == pytest.approx([100 / (4 * n) for n in (60, 20, 10, 10)])
    assert sum(w * n for w, n in zip(weights.tolist(), INFO.counts, strict=True)) == pytest.approx(100)
    labels = torch.tensor([0, 0, 0, 1, 4, 2, 2])
    batch = Batch(torch.rand(7, 3, 16, 16), labels, torch.arange(7))
    logits = torch.randn(7, 5)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def loss(task, part=slice(None)):
        nets = {"classifier": lambda images: logits[part]}
        return task.loss("classifier", nets, Batch(*(x[part] for x in batch)), None)[0].item()

    assert loss(weighted) == pytest.approx((weights[labels] * each).mean().item())
    assert loss(plain) == pytest.approx(each.mean().item()) and plain.weights is None
    # Two workers, as TrainStep adds them up: the mean over the global batch.
    shares = [loss(weighted, part) * n * 2 / 7 for part, n in ((slice(0, 4), 4), (slice(4, 7), 3))]
    assert sum(shares) / 2 == pytest.approx(loss(weighted), rel=1e-6)


def test_sampling_shows_classes_alike_and_their_images_evenly():
    loader = Loader(uneven(), global_batch_size=67, even_classes=True, seed=3)
    orders = [
        torch.cat([(b.images[:, 0, 0, 0] * 255).round().long() for b in loader.epoch(e)]) for e in (0, 1, 0)
    ]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    for order in orders:
        shown = order.bincount(minlength=67)
        assert [int(part.sum()) for part in shown.split((50, 13, 4))] == [23, 22, 22]
        for part in shown.split((50, 13, 4)):
            assert part.max() - part.min() <= 1
    first = [set(order[order < 50].tolist()) for order in orders]
    assert first[0] != first[1]  # of a large class, others every time


def test_sampling_is_the_same_for_any_number_of_workers_and_from_any_step():
    options = {"global_batch_size": 9, "even_classes": True}
    alone = list(Loader(uneven(), **options).epoch(2))
    for size in (2, 4):
        ranks = [list(Loader(uneven(), rank=r, world_size=size, **options).epoch(2)) for r in range(size)]
        for batch, *shares in zip(alone, *ranks, strict=True):
            assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    later = list(Loader(uneven(), **options).epoch(2, 4))
    assert all(torch.equal(a.images, b.images) for a, b in zip(later, alone[4:], strict=True))


@pytest.mark.parametrize(
    ("counts", "decided"),
    [((40, 13), ("weights", "balanced_accuracy")), ((40, 14), ("none", "accuracy"))],
)
def test_what_is_done_by_default_is_decided_by_the_data_and_recorded(counts, decided, tmp_path):
    images = uneven(counts)
    images = dataclasses.replace(images, storage=images.storage[..., :1, :1].expand(-1, 3, 16, 16))
    run = RunFolder(str(tmp_path), "run")
    run.create()
    trainer = worker.build(tiny("cifar10", global_batch_size=16), Splits(images, images, None, "x"), run)
    names = ("task.balance", "task.monitor")
    assert tuple(flatten(trainer.config)[name] for name in names) == decided
    assert tuple(run.read_json("config.json")[name] for name in names) == decided
    assert trainer.selection.metric == f"val/{decided[1]}"
    assert (trainer.task.weights is not None) == (decided[0] == "weights")


def test_what_selects_follows_the_data_unless_it_is_said():
    def compared(monitor="auto", metric="", info=INFO):
        config = tiny("cifar10", task__monitor=monitor)
        config, (name, direction) = tasks.kind(config).comparable(config, metric, lambda: info)
        assert direction == "max" and config.task.monitor == name
        return name

    assert compared() == "balanced_accuracy" and compared(info=None) == "accuracy"
    assert compared(info=INFO._replace(unbalanced=False)) == "accuracy"
    assert compared(metric="accuracy") == "accuracy" and compared("accuracy") == "accuracy"
    assert compared("balanced_accuracy", info=None) == "balanced_accuracy"
    assert task(monitor="balanced_accuracy").monitor == ("balanced_accuracy", "max")
    assert task().monitor == ("accuracy", "max")
