"""Which images are held out, and which folders will do."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from crayon.config.settings import DataConfig
from crayon.data import ImageSet, load
from crayon.data.images import hold_out
from crayon.errors import BadInput
from crayon.rng import Randomness


@pytest.mark.parametrize("counts", [(10, 30), (7, 7, 7), (1, 2, 50), (33, 5, 5, 5, 90)])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_every_class_gives_its_share_of_the_validation_split_to_within_one_image(counts, fraction):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n, n_val = len(labels), round(len(labels) * fraction)
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    train, val = hold_out(ImageSet("x/train", pixels, labels), fraction)
    assert len(val) == n_val and (train.name, val.name) == ("x/train", "x/val")
    for count, held in zip(counts, val.labels.bincount(minlength=len(counts)).tolist(), strict=True):
        assert abs(held - count * n_val / n) < 1
    # A run that goes on with another version must find the same split.
    order = Randomness(0, "validation").permutation(n).tolist()
    by_label = sorted(order, key=lambda i: int(labels[i]))
    expected = sorted(by_label[(2 * k + 1) * n // (2 * n_val)] for k in range(n_val))
    assert val.gather(torch.arange(len(val))).flatten().tolist() == expected
    assert train.gather(torch.arange(len(train))).flatten().tolist() == sorted(set(range(n)) - set(expected))


def folder(root, **changes) -> DataConfig:
    return DataConfig(source="folder", root=str(root), image_size=16, channels=3, **changes)


def test_unlabelled_images_may_lie_in_one_folder_or_in_several_or_in_none(tmp_path, own_cache):
    for name, folders in (("one", ["a"]), ("two", ["a", "b"]), ("none", ["."])):
        for inside in folders:
            path = tmp_path / name / "train" / inside
            path.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (20, 20), (50 * i, 0, 0)).save(path / f"{i}.png")
        splits = load(folder(tmp_path / name, val_fraction=0.25), labels=False)
        assert len(splits.train) + len(splits.val) == 4 * len(folders) and splits.test is None
    with pytest.raises(BadInput, match="only the class folder 'a'; a classifier needs at least two"):
        load(folder(tmp_path / "one"), labels=True)


def test_images_of_which_none_can_be_read_are_refused_however_many_may_be_left_out(tmp_path, own_cache):
    (tmp_path / "d").mkdir()
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match="3 of 3 images"):
        load(folder(tmp_path / "d", max_unreadable=1.0), labels=False)
