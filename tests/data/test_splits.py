"""What stays on one side of a split: copies, groups, and classes of one image."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers import pixels
from PIL import Image
from test_layout import counts, make, opened, rows
from test_remote import parquet

from crayon.config.settings import DataConfig
from crayon.data import check
from crayon.data.folder import walk
from crayon.data.images import ImageSet, hold_out
from crayon.data.own import Source
from crayon.data.splits import connected, examined
from crayon.errors import BadInput

pytestmark = pytest.mark.usefixtures("own_cache")


def test_copies_are_on_one_side_and_those_of_given_splits_are_counted(tmp_path):
    root = make(tmp_path / "d", a=40, b=40)
    for c in "ab":
        for i in range(20):
            shutil.copy(root / c / f"{i:03}.png", root / c / f"{i:03}-again.png")
    splits = opened(root, test_fraction=0.3, val_fraction=0.3)
    train, val, test = map(rows, splits[:3])
    assert not train & val and not train & test and not val & test and len(train | val | test) == 80
    assert "40 images are copies of others" in " ".join(splits.about["notes"])
    assert sum(counts(splits)) == 120
    given = make(tmp_path / "g", train__a=5, train__b=5, test__a=5, test__b=5)
    for i in range(3):
        shutil.copy(given / "train" / "a" / f"00{i}.png", given / "test" / "a" / f"00{i}.png")
    assert "3 of 10 test images are copies of training images" in opened(given).about["warnings"]


def test_files_of_one_size_differ_where_a_byte_does(tmp_path):
    contents = {
        "a": b"x" * 40_000,
        "b": b"y" + b"x" * 39_999,
        "c": b"x" * 40_000,
        "d": b"x" * 9,
        "e": b"",
        "f": b"",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    found = sorted(walk(tmp_path))
    digests, shapes = examined([(tmp_path, found)], lambda event: None)
    assert digests[0] == digests[2] != 0 and not digests[[1, 3, 4, 5]].any() and shapes.shape == (0, 2)


def test_groups_stay_on_one_side(tmp_path):
    root = make(tmp_path / "d", a=0, b=0)
    for i in range(120):
        name = f"p{i % 12:02}-{i}.png" if i < 108 else f"other{i}.png"
        Image.new("RGB", (8, 8), (i % 12 if i < 108 else 99, i, 7)).save(root / "ab"[i % 2] / name)
    splits = opened(root, groups=r"/p(\d+)-", val_fraction=0.2, test_fraction=0.25)
    sides = [{row[0] for row in rows(images)} - {99} for images in splits[:3]]
    assert sum(map(len, sides)) == 12 and all(sides)
    assert "12 groups by --data.groups; 12 images are in none" in splits.about["notes"]
    for pattern, message in (
        ("p(", "no regular expression"),
        ("zebra", "matches nothing in .* such as a/other"),
    ):
        with pytest.raises(BadInput, match=message):
            opened(root, groups=pattern)
    with pytest.raises(BadInput, match="groups is for the paths"):
        check(DataConfig(source="digits", groups="x"), labels=True)


def test_groups_are_connected_by_whatever_they_share():
    assert connected(["a", None, "b", None, "a"], [0, 3, 0, 3, 5], [None] * 4 + ["x"]).tolist() == [
        0,
        1,
        2,
        1,
        0,
    ]
    assert connected([1, 2, 3], ["a", "b", "b"]).tolist() == [0, 1, 1]
    assert connected([1, 2, 3, 0, 0]) is None


def test_a_split_of_groups_of_one_is_the_split_without_groups_and_no_class_is_held_out_whole():
    labels = torch.tensor([0] * 30 + [1] * 9 + [2])
    images = ImageSet("x/train", torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1), labels, tuple("abc"))
    single = ImageSet(images.name, images.storage, labels, images.classes, groups=torch.arange(40) * 7)
    for fraction in (0.1, 0.3):
        assert [rows(part) for part in hold_out(single, fraction)] == [
            rows(part) for part in hold_out(images, fraction)
        ]
    for fraction in (0.1, 0.5, 0.97):
        train, _ = hold_out(images, fraction, every_class=True)
        assert train.labels.unique().tolist() == [0, 1, 2]
    # A group that is most of the images is trained on, whatever the draw.
    for sizes, most in (((90, 10), 10), ((10, 90), 10), ((30, *[1] * 70), 8), ((20, 20, 20, 20, 20), 20)):
        number = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        pixels_ = torch.zeros(100, 1, 1, 1, dtype=torch.uint8)
        train, val = hold_out(
            ImageSet("x/train", pixels_, torch.zeros(100, dtype=torch.int64), groups=number), 0.08
        )
        assert 1 <= len(val) <= most and not set(train.groups.tolist()) & set(val.groups.tolist())
    one = ImageSet(
        images.name, images.storage, labels, images.classes, groups=torch.zeros(40, dtype=torch.int64)
    )
    assert hold_out(one, 0.5)[1] is None
    ones = ImageSet("x/train", images.storage[:3], torch.arange(3), tuple("abc"))
    assert hold_out(ones, 0.4, every_class=True) == (ones, None)


def test_copies_among_decoded_images_are_found_wherever_they_come_from(tmp_path):
    root = make(tmp_path / "d", train__cat=20, train__dog=20, test__cat=5, test__dog=5)
    for i in range(3):
        shutil.copy(root / f"train/cat/00{i}.png", root / f"test/cat/00{i}.png")
    for i in range(10):
        shutil.copy(root / f"train/cat/00{i}.png", root / f"train/dog/again-{i}.png")
    (root / "train/dog/bad.png").write_text("no picture")
    (root / "train/dog/bad too.png").write_text("nor this one")
    read = opened(root, max_unreadable=0.2)

    def load_(split, _):
        images = {"train": read.train, "val": read.val, "test": read.test}
        both = torch.cat([pixels(images[name]) for name in (split, "val")[: 1 + (split == "train")]])
        return both.permute(0, 2, 3, 1).numpy(), [i % 2 for i in range(len(both))]

    own = {"source": "mine", "own": Source("mine", load_, ("cat", "dog"))}
    for place, changes in ((parquet(root, tmp_path / "p"), {}), (root, own)):
        splits = opened(place, val_fraction=0.3, max_unreadable=0.2, **changes)
        train, val = map(rows, splits[:2])
        assert not train & val and len(train | val) == 40 and len(splits.train) + len(splits.val) == 50
        assert "13 images are copies of others, which" in " ".join(splits.about["notes"])
        assert "3 of 10 test images are copies of training images" in splits.about["warnings"]
