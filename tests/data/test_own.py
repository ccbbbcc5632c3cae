"""Images of one's own: what a source may give, and when it is asked again."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

import crayon
from crayon import data

pytestmark = pytest.mark.usefixtures("own_cache")


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 10, 12), np.uint8)


@pytest.mark.parametrize("kind", ["arrays", "colour", "pillow", "files", "dataset", "dicts", "images alone"])
def test_a_source_gives_arrays_pictures_files_or_a_dataset(kind, tmp_path):
    array = images(6)
    pictures = [Image.fromarray(a) for a in array]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    labels = [0, 1, 2, 0, 1, 2]
    given = {
        "arrays": (array, labels),
        "colour": (np.repeat(array[..., None], 3, 3), labels),
        "pillow": list(zip(pictures, labels, strict=True)),
        "files": ([tmp_path / f"{i}.png" for i in range(6)], torch.tensor(labels)),
        "dicts": [{"image": p, "label": k} for p, k in zip(pictures, labels, strict=True)],
        "dataset": torch.utils.data.StackDataset(pictures, labels),
        "images alone": pictures,
    }[kind]
    classes = () if kind == "images alone" else ("a", "b", "c")
    own = crayon.Source("mine", lambda split, root: given if split == "train" else None, classes)
    config = crayon.DataConfig(source="mine", own=own, image_size=8, channels=1, val_fraction=0)
    splits = data.load(config, labels=False)
    expected = np.stack(
        [np.asarray(p.resize((8, 8), Image.Resampling.LANCZOS, (1, 0, 11, 10))) for p in pictures]
    )
    got = splits.train.gather(torch.arange(6))[:, 0].numpy()
    assert np.abs(got.astype(int) - expected).max() <= 1  # of a colour image, luma
    assert splits.test is None and splits.train.classes == classes
    assert splits.train.labels.tolist() == ([0] * 6 if kind == "images alone" else labels)


def test_another_source_of_the_same_name_is_not_taken_for_this_one():
    def gathered(load, classes=("a",)) -> torch.Tensor:
        own = crayon.Source("mine", load, classes)
        config = crayon.DataConfig(source="mine", own=own, image_size=10, channels=1)
        return data.load(config, labels=False).train.gather(torch.tensor([0]))

    one = gathered(lambda split, root: (images(8, 1), np.zeros(8, int)))
    other = gathered(lambda split, root: (images(8, 2), np.zeros(8, int)))
    assert not torch.equal(one, other)


def test_without_classes_any_numbers_stand_beside_the_images():
    boxes = np.random.default_rng(0).random((20, 4))
    own = crayon.Source("mine", lambda split, root: (images(20), boxes) if split == "train" else None)
    splits = data.load(
        crayon.DataConfig(source="mine", own=own, image_size=8, val_fraction=0.1), labels=False
    )
    assert splits.train.labels.shape == (18, 4) and splits.val.labels.shape == (2, 4)
    batch = next(data.Loader(splits.train, global_batch_size=6).epoch(0))
    assert batch.labels.dtype == torch.float32 and batch.labels.shape == (6, 4)
    everything = torch.from_numpy(boxes.astype(np.float32)).tolist()
    assert all(label in everything for label in batch.labels.tolist())


def test_images_are_read_once_for_each_version(tmp_path):
    calls = []

    def load(split, root):
        calls.append(split)
        return images(8, len(calls)), np.zeros(8, int)

    def first(version: int) -> torch.Tensor:
        own = crayon.Source("mine", load, ("a",), version=version)
        config = crayon.DataConfig(source="mine", own=own, image_size=10, channels=1)
        return data.load(config, labels=False).train.gather(torch.tensor([0]))

    before = first(1)
    assert torch.equal(first(1), before) and calls == ["train", "test"]
    assert not torch.equal(first(2), before) and calls == 2 * ["train", "test"]


def test_what_changes_under_its_root_is_read_again(tmp_path):
    root, calls = tmp_path / "set", []
    (root / "runs" / "first").mkdir(parents=True)

    def load(split, _):
        calls.append(split)
        if not (root / "deep" / "images.npy").exists():  # as a download
            (root / "deep").mkdir()
            np.save(root / "deep" / "images.npy", images(8, 1))
        return (np.load(root / "deep" / "images.npy"), np.zeros(8, int)) if split == "train" else None

    own = crayon.Source("mine", load, ("a",))
    config = crayon.DataConfig(source="mine", own=own, root=str(root), image_size=10, channels=1)
    (root / "runs" / "first" / ".lock").touch()
    before, again = (data.load(config, labels=False).fingerprint for _ in range(2))
    (root / "runs" / "first" / "metrics.jsonl").touch()
    assert calls.count("train") == 1 and before == again == data.load(config, labels=False).fingerprint
    np.save(root / "deep" / "images.npy", images(8, 2))
    os.utime(root / "deep" / "images.npy", (0, 0))
    now, again = (data.load(config, labels=False).fingerprint for _ in range(2))
    assert calls.count("train") == 2 and now == again != before


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda split, root: (images(8), np.arange(8)), "has the label 3, and its 3 classes"),
        (lambda split, root: (images(8), np.arange(7)), "mine/train has 8 images and 7 labels"),
        (lambda split, root: (images(8), ["a"] * 8), "has the label 'a'; give a class's index"),
        (lambda split, root: (images(8)[:, 0], np.zeros(8)), r"is uint8 \(12,\); give images as arrays"),
        (lambda split, root: iter(images(8)), "has no length"),
        (lambda split, root: ([__file__] * 8, np.zeros(8)), "Image 0 of mine/train can't be read"),
        (lambda split, root: [], "has no images"),
        (lambda split, root: None, "has no training images"),
    ],
)
def test_sources_that_cannot_be_are_told(load, said):
    own = crayon.Source("mine", load, ("a", "b", "c"))
    with pytest.raises(crayon.BadInput, match=said):
        data.load(crayon.DataConfig(source="mine", own=own, image_size=8, channels=1), labels=True)
