"""How a folder is read: splits, classes, and what is left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import pixels
from PIL import Image

from crayon.config.settings import DataConfig
from crayon.data import check, load
from crayon.data.folder import LeftOut, kind_of, walk
from crayon.data.images import ImageSet
from crayon.data.layout import layout
from crayon.errors import BadInput
from crayon.report.events import Event, Message

pytestmark = pytest.mark.usefixtures("own_cache")


def make(root: Path, **counts: int) -> Path:
    """Folders of that many images, each of its own colour; `__` for a slash."""
    for number, (name, count) in enumerate(counts.items()):
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (number + 1, i, len(name))).save(folder / f"{i:03}.png")
    return root


def config(root: Path, **changes) -> DataConfig:
    return DataConfig(**({"source": "folder", "root": str(root), "image_size": 8, "channels": 3} | changes))


def opened(root: Path, *, labels: bool | None = True, **changes):
    return load(config(root, **changes), labels=labels)


def rows(images: ImageSet | None) -> set[tuple[int, ...]]:
    """The images, by the colour of a pixel."""
    return set() if images is None else {tuple(image) for image in pixels(images)[:, :, 0, 0].tolist()}


def counts(splits) -> tuple[int, ...]:
    return tuple(0 if images is None else len(images) for images in splits[:3])


# Splits and classes


def test_class_folders_without_splits_give_all_three_the_same_in_every_run(tmp_path):
    root = make(tmp_path / "d", cat=40, dog=30, eel=20, one=1)
    splits = opened(root, val_fraction=0.1)
    assert splits.train.classes == ("cat", "dog", "eel", "one") and counts(splits) == (74, 8, 9)
    train, val, test = map(rows, splits[:3])
    assert len(train | val | test) == 91  # nothing twice
    for held in (splits.test, splits.val):
        assert held.labels.bincount(minlength=4).tolist() in (
            [4, 3, 2, 0],
            [4, 2, 2, 0],
            [4, 3, 1, 0],
            [3, 3, 2, 0],
        )
    notes, warnings = (" ".join(splits.about[name]) for name in ("notes", "warnings"))
    assert "10 % (9) as test split and 10 % of the rest (8) as validation split" in notes
    assert "1 class has no test image: one" in warnings and "fewer than 20 training images: eel" in warnings
    assert "1 class has no validation image: one" in warnings
    # Fewer images are some of these, selected by and tested on the same ones.
    fewer = opened(root, val_fraction=0.1, size=20)
    assert rows(fewer.train) < train and (rows(fewer.val), rows(fewer.test)) == (val, test)
    # Whatever order the file system gives them in.
    moved = tmp_path / "moved"
    for path in sorted(root.rglob("*.png"), reverse=True):
        (moved / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, moved / path.relative_to(root))
    assert [*map(rows, opened(moved, val_fraction=0.1)[:3])] == [train, val, test]
    assert counts(opened(root, val_fraction=0.1, test_fraction=0.0)) == (82, 9, 0)


def test_an_evaluation_finds_the_splits_that_training_had_and_a_gan_takes_all(tmp_path):
    root = make(tmp_path / "d", cat=20, dog=20)
    assert [*map(rows, opened(root, labels=None)[:3])] == [*map(rows, opened(root)[:3])]
    assert counts(opened(root, labels=False)) == (37, 3, 0)
    flat = make(tmp_path / "flat", **{"": 10})
    assert counts(opened(flat, labels=None)) == (9, 1, 0) and not opened(flat, labels=None).train.classes


@pytest.mark.parametrize("names", ["train val test", "Train VALID TEST", "training dev Testing"])
def test_splits_are_what_their_folders_are_called(tmp_path, names):
    train, val, test = names.split()
    made = {f"{n}__{c}": k for n, k in ((train, 6), (val, 3), (test, 4)) for c in ("a", "b")}
    root = make(tmp_path / "d", **made)
    for labels in (True, False):
        splits = opened(root, labels=labels)
        assert counts(splits) == (12, 6, 8) and splits.val.name == "folder/val"
        assert splits.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    notes = " ".join(splits.about["notes"])
    assert (f"{val} is the validation split" in notes) == (val != "val") and "held out" not in notes


def test_without_a_test_split_it_is_said_and_can_be_had(tmp_path):
    root = make(tmp_path / "d", train__a=10, train__b=10)
    alone = opened(root)
    assert counts(alone) == (18, 2, 0) and "no test metric; --data.test-fraction" in " ".join(
        alone.about["notes"]
    )
    assert counts(opened(root, test_fraction=0.2)) == (15, 1, 4)
    assert counts(opened(root, labels=False, test_fraction=0.2)) == (15, 1, 4)
    make(root, test__a=1, test__b=1)
    with pytest.raises(BadInput, match=r"test-fraction: .* has a test split"):
        check(config(root, test_fraction=0.2), labels=True)
    with pytest.raises(BadInput, match="test-fraction: digits has a test split"):
        check(DataConfig(source="digits", test_fraction=0.2), labels=True)


def test_images_that_are_in_no_class_are_left_out_and_told(tmp_path):
    root = make(tmp_path / "d", train__a=4, train__b=4, test__a=2, test__b=2, train=1, test=2, notes__old=1)
    splits = opened(root)
    assert sum(counts(splits)[:2]) == 8 and len(splits.test) == 4
    left = " ".join(splits.about["left_out"])
    assert (
        "1 image beside the class folders of" in left
        and f"2 images beside the class folders of {root}/test" in left
    )
    assert "folders in no split or without images: notes" in left
    make(root, extra=2)
    assert "images: extra, notes" in " ".join(opened(root).about["left_out"])
    # Unlabelled jobs take any mixture of folders.
    assert counts(opened(root, labels=False)) == (8, 1, 6)
    kaggle = make(tmp_path / "k", train__a=4, train__b=4, test=5)
    told = opened(kaggle)
    assert told.test is None and "test has no class folders" in " ".join(told.about["notes"])


def test_few_images_are_trained_on_and_it_is_said(tmp_path):
    each = opened(make(tmp_path / "d", a=1, b=1, c=1))
    assert counts(each) == (3, 0, 0)
    said = [f"too few images to hold some out as {split} split" for split in ("test", "validation")]
    assert set(said) < set(each.about["warnings"]) and "held out" not in " ".join(each.about["notes"])
    assert counts(opened(make(tmp_path / "three", **{"": 3}), labels=False)) == (2, 1, 0)
    links = make(tmp_path / "links", a=2)
    (links / "b").symlink_to(make(tmp_path / "elsewhere", b=2) / "b")
    assert sum(counts(opened(links))) == 4


# Names


def test_names_of_any_bytes_are_one_line_of_text_everywhere(tmp_path):
    root = make(tmp_path / "d", train__plain=20, test__plain=2)
    for split, accented in (
        ("train", "caf\u00e9".encode()),
        ("test", "cafe\u0301".encode()),
    ):  # as macOS has it
        for name, count in ((b"d\xe9j\xe0", 12), (accented, 12)):
            folder = os.fsencode(root / split) + b"/" + name
            os.makedirs(folder)
            for i in range(count):
                Image.new("RGB", (8, 8), (200, i, count)).save(folder + b"/%02d\xff.png" % i)
    name = os.fsdecode(b"bad\n\n\n\n\n\xff\x1b[31m.png")
    (root / "train" / "plain" / name).write_bytes(b"")
    events: list[Event] = []
    splits = load(config(root), labels=True, emit=events.append)
    assert splits.train.classes == ("caf\u00e9", r"d\xe9j\xe0", "plain") and len(splits.test) == 26
    (text,) = (event.text for event in events if isinstance(event, Message))
    assert text.startswith("left out 1 unreadable of 45 images")
    (line,) = Path(text.rpartition(" ")[2]).read_text().splitlines()
    assert line.partition("\t")[0].endswith(r"train/plain/bad\n\n\n\n\n\xff\x1b[31m.png")
    # In a locale that has only ASCII.
    ask = f"print(ascii(layout(Path({str(root)!r}), labels=True).classes))"
    code = f"from pathlib import Path; from crayon.data.layout import layout; {ask}"
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=True
    )
    assert done.stdout == ascii(splits.train.classes) + "\n"


# What is left out


def test_everything_that_is_left_out_is_counted_by_kind(tmp_path):
    root = make(tmp_path / "d", a=4, b=4, empty=0)
    for name in (
        "a/x.MOV",
        "a/y.mov",
        "a/z.CR2",
        "b/x.nef",
        "b/scan.pdf",
        "b/README",
        "b/._0.png",
        "Thumbs.db",
    ):
        (root / name).write_bytes(b"")
    make(root, **{"a__@eaDir": 3, "b__.AppleDouble": 1})
    make(root / "__MACOSX", x=1)
    make(root, runs__first__pictures=2)
    (root / "runs" / "first" / "metrics.jsonl").write_text("{}")
    assert len(opened(root, labels=False, val_fraction=0.0).train) == 8
    (root / "b" / "gone.png").symlink_to("/nowhere")
    splits = opened(root)
    assert sum(counts(splits)) == 8 and splits.train.classes == ("a", "b")
    kinds, hidden, others = splits.about["left_out"]
    assert {"2 MOV", "2 RAW", "1 PDF", "1 without an ending", "1 links to nothing"} <= {
        part.partition(" (")[0] for part in kinds.partition(": ")[2].split(", ")
    }
    assert all(
        name in hidden for name in ("@eaDir", ".AppleDouble", "Thumbs.db", "._0.png")
    ) and others.endswith("empty, runs")
    assert json.loads(json.dumps(splits.about)) == splits.about and splits.about["kinds"] == {"PNG": 8}
    assert [kind_of(n) for n in ("a.JPEG", "b.Tiff", "c.dng", "d", "e.tar.gz")] == [
        "JPG", "TIF", "RAW", "without an ending", "GZ"
    ]  # fmt: skip


LOCKED = """
import os, sys
from pathlib import Path
from crayon.data.folder import LeftOut, walk
from crayon.data.layout import layout
from crayon.errors import BadInput
root = Path(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)  # permissions don't bind root
read = layout(root, labels=True)
found = [f.path for f in walk(root, read.left_out, read.parts["train"].inside)]
print(sorted(found), read.classes, sorted(os.path.relpath(p, root) for p in read.left_out.locked))
try: layout(root / "cat", labels=True)
except BadInput as error: print(error)
"""


def test_folders_that_may_not_be_read_are_left_out_and_told():
    with tempfile.TemporaryDirectory() as place:  # not pytest's, which only their owner may enter
        Path(place).chmod(0o755)
        root = make(Path(place) / "d", cat=1, dog=1, cat__private=1, closed=1, listed=1)
        modes = {"cat/private": 0, "closed": 0, "listed": 0o744}
        for name, mode in modes.items():
            (root / name).chmod(mode)
        command = [sys.executable, "-c", LOCKED, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for name in modes:
            (root / name).chmod(0o755)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert (
        first == "['cat/000.png', 'dog/000.png'] ('cat', 'dog') ['cat/private', 'closed', 'listed/000.png']"
    )
    assert "no class folders" in second or "only the class folder" in second


def test_thousands_of_classes_are_read_at_once(tmp_path):
    for i in range(300):
        (tmp_path / "d" / f"c{i}").mkdir(parents=True)
        (tmp_path / "d" / f"c{i}" / "a.png").write_bytes(b"x" * (i + 1))
    read = layout(tmp_path / "d", labels=True)
    assert (
        len(read.classes) == 300
        and len(list(walk(tmp_path / "d", LeftOut(), read.parts["train"].inside))) == 300
    )


def test_heic_is_read_where_its_plugin_is_and_else_the_extra_is_named(tmp_path):
    root = make(tmp_path / "d", **{"": 3})
    try:
        import pillow_heif
    except ImportError:
        (root / "x.HEIC").write_bytes(b"")
        (line,) = opened(root, labels=False).about["left_out"]
        assert line == "of other kinds: 1 HEIC (HEIC is read after pip install 'crayon-ray[heic]')"
    else:
        pillow_heif.from_pillow(Image.fromarray(np.full((64, 64, 3), 200, np.uint8))).save(root / "x.HEIC")
        splits = opened(root, labels=False)
        assert sum(counts(splits)) == 4 and splits.about["left_out"] == []
