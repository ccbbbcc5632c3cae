"""A folder of images: what is found, what is skipped, what the cache survives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from disks import small_disk
from helpers import pixels, python
from PIL import Image

from crayon.config.settings import DataConfig
from crayon.data import cache_root, check, load
from crayon.data.folder import LeftOut, walk
from crayon.errors import BadInput
from crayon.report.events import Event, Message, Progress

RED = (255, 0, 0)
pytestmark = pytest.mark.usefixtures("own_cache")


def save(path: Path, colour=RED, size=(20, 20), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def numbered(root: Path, n: int) -> Path:
    for i in range(n):
        save(root / f"{i:03}.png", (i % 256, 1, 2), size=(4, 4))
    return root


def labelled(root: Path, n: int = 4) -> Path:
    for split in ("train", "test"):
        for i in range(n):
            save(root / split / "cat" / f"{i}.png", (200 + i, 0, 0))
            save(root / split / "dog" / f"{i}.png", (0, 0, 200 + i))
    return root


def folder(root: Path, **changes) -> DataConfig:
    values = {"source": "folder", "root": str(root), "image_size": 16, "channels": 3, "val_fraction": 0.25}
    return DataConfig(**(values | changes))


def test_labels_classes_and_splits(tmp_path):
    splits = load(folder(labelled(tmp_path / "d")), labels=True)
    assert splits.train.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 8)
    for images in splits[:3]:
        red = pixels(images)[:, 0].amax((1, 2)) > 0
        assert torch.equal(red, images.labels == 0) and len(images.labels.unique()) == 2


def test_flat_folder_is_searched_at_every_depth_and_through_links(tmp_path):
    save(tmp_path / "d" / "a.png")
    save(tmp_path / "d" / "x" / "y" / "b.JPG")
    (tmp_path / "d" / "x" / "back").symlink_to(tmp_path / "d")  # a circle
    save(tmp_path / "d" / ".hidden.png")
    (tmp_path / "d" / "notes.txt").write_text("no image")
    left = LeftOut()
    assert sorted(f.path for f in walk(tmp_path / "d", left)) == ["a.png", "x/y/b.JPG"]
    splits = load(folder(tmp_path / "d", val_fraction=0.0), labels=False)
    assert len(splits.train) == 2 and splits.val is None and splits.test is None and not splits.train.classes


def test_unlabelled_images_may_lie_in_one_folder_or_in_several_or_in_none(tmp_path):
    for name, folders in (("one", ["a"]), ("two", ["a", "b"]), ("none", ["."])):
        for inside in folders:
            for i in range(4):
                save(tmp_path / name / "train" / inside / f"{i}.png", (50 * i, 0, 0))
        splits = load(folder(tmp_path / name), labels=False)
        assert len(splits.train) + len(splits.val) == 4 * len(folders) and splits.test is None


def test_rows_lie_in_the_files_order_and_one_that_is_no_image_is_named(tmp_path):
    root = numbered(tmp_path / "d", 150)
    (root / "100.png").write_bytes(b"damaged")
    events: list[Event] = []
    images = load(folder(root, val_fraction=0.0), labels=False, emit=events.append).train
    assert pixels(images)[:, 0, 0, 0].tolist() == [i for i in range(150) if i != 100]
    done = [
        event.done
        for event in events
        if isinstance(event, Progress) and event.what == "decoding folder/train"
    ]
    assert done == [0, 32, 64, 96, 128, 150]


# Unreadable files


def test_unreadable_files_are_left_out_counted_and_listed(tmp_path, monkeypatch):
    root = labelled(tmp_path / "d", n=10)
    bad = root / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    events = []
    config = folder(root, max_unreadable=0.1)
    splits = load(config, labels=True, emit=events.append)
    assert len(splits.train) + len(splits.val) == 19
    both = torch.cat([pixels(splits.train), pixels(splits.val)])
    assert both.amax((1, 2, 3)).min() >= 200  # no black picture in its place
    (warning,) = (event.text for event in events if isinstance(event, Message) and event.warning)
    assert warning.startswith("left out 1 unreadable of 20 images")
    listed = Path(warning.rsplit(" ", 1)[1]).read_text()
    assert listed.count("\n") == 1 and listed.startswith(str(bad))
    with pytest.raises(BadInput, match=r"1 of 20 images .*3\.png.*--data\.max-unreadable"):
        load(folder(root, max_unreadable=0.04), labels=True)


def test_images_of_which_none_can_be_read_are_refused_however_many_may_be_left_out(tmp_path):
    root = numbered(tmp_path / "d", 3)
    for path in root.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(BadInput, match="3 of 3 images"):
        load(folder(root, max_unreadable=1.0), labels=False)


# The cache


def entries() -> list[str]:
    """Of decoded images."""
    there = (p.name for p in (cache_root() / "images").iterdir())
    return sorted(
        n for n in there if not n.endswith(".lock") and not n.removeprefix(".tmp-").startswith("files-")
    )


def test_second_load_decodes_nothing_and_a_changed_file_or_another_size_decodes_anew(tmp_path):
    root = labelled(tmp_path / "d")
    load(folder(root), labels=True)
    events: list[Event] = []
    again = load(folder(root), labels=True, emit=events.append)
    assert events == [] and len(entries()) == 2
    save(root / "train" / "cat" / "0.png", (1, 255, 1))
    changed = load(folder(root), labels=True)
    assert len(entries()) == 3
    both = torch.cat([pixels(changed.train), pixels(changed.val)])
    assert (both[:, 1].amax((1, 2)) == 255).sum() == 1
    assert (torch.cat([pixels(again.train), pixels(again.val)])[:, 1] == 0).all()
    for size, channels in ((8, 3), (16, 1)):
        other = load(folder(root, image_size=size, channels=channels), labels=True)
        assert other.train.shape == (channels, size, size)


LOAD = """
import sys
from crayon.config.settings import DataConfig
from crayon.data import load
config = DataConfig(source="folder", root=sys.argv[1], image_size=64, channels=3)
splits = load(config, labels=False, emit=lambda event: print(event.what, event.done, flush=True))
print("sum", sum(int(part.sum()) for part in splits.train.parts()))
"""


def test_two_processes_at_once_decode_once(tmp_path):
    command = [sys.executable, "-c", LOAD, str(numbered(tmp_path / "d", 300))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("decoding" in output for output in outputs) == [False, True]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert len(entries()) == 1


def test_a_builder_killed_half_way_leaves_nothing_that_looks_finished(tmp_path):
    root = numbered(tmp_path / "d", 300)
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time, crayon.data.decode as d\nfirst = d.decode\n"
        "d.decode = lambda *a: (time.sleep(0.05), first(*a))[1]\n" + LOAD
    )
    process = subprocess.Popen([sys.executable, str(slow), str(root)], stdout=subprocess.PIPE, text=True)
    while not process.stdout.readline().endswith(" 64\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(entries()) == 1 and entries()[0].startswith(".tmp-")
    splits = load(folder(root, image_size=64, val_fraction=0.0), labels=False)
    assert len(entries()) == 1 and not entries()[0].startswith(".tmp-")
    expected = torch.tensor([i % 256 for i in range(300)], dtype=torch.uint8)
    assert torch.equal(pixels(splits.train)[:, 0, 0, 0], expected)


def test_a_disk_that_fills_up_while_images_are_decoded(tmp_path, monkeypatch):
    root = numbered(tmp_path / "d", 200)
    with small_disk(tmp_path / "disk", 1) as disk:
        monkeypatch.setenv("CRAYON_CACHE", str(disk / "cache"))
        with pytest.raises(BadInput, match=r"No space left in .*; free some, or set CRAYON_CACHE"):
            load(folder(root, image_size=64), labels=False)
        assert entries() == []


@pytest.mark.parametrize("kind", ["file", "locked"])
def test_cache_that_can_be_no_folder(tmp_path, monkeypatch, kind):
    if kind == "locked" and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    place = tmp_path / kind
    place.write_text("") if kind == "file" else place.mkdir(mode=0o500)
    monkeypatch.setenv("CRAYON_CACHE", str(place))
    with pytest.raises(BadInput, match=r"Can't write to .*CRAYON_CACHE"):
        load(folder(labelled(tmp_path / "d")), labels=True)


# Bad input


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (None, False, "There is no folder .*--data.root"),
        (["a.txt"], False, "has no images"),
        (["cat/a.png"], True, r"only the class folder 'cat'.*train/<class>/"),
        (["all/cat/a.png", "all/dog/a.png"], True, r"if the classes are cat, dog, set --data.root \S+/all\b"),
        (
            ["train/cat/a.png", "train/dog/a.png", "Train/cat/a.png"],
            True,
            "Train and train, each .* train split",
        ),
        (["train/a/a.png", "train/b/a.png", "val/a/a.png", "valid/a/a.png"], False, "val and valid, each"),
        (
            ["car/a.png", "bus/a.png", "train/a.png"],
            True,
            "beside train: if train is .* split, .*; if it is a class",
        ),
        (["train/cat/a.png", "train/dog/a.png", "eel/a.png"], True, "has eel beside train: if train is"),
        (
            ["cat/a.png", "dog/a.png", "test/a.png"],
            True,
            "has cat, dog beside test, and no train .* if it is a class",
        ),
        (
            ["train/cat/a.cr2", "train/dog/a.png"],
            True,
            r"cat has no images \(of other kinds: 1 RAW\)",
        ),
        (["train/cat/a.png"], True, "only the class folder 'cat'"),
        (["train/cat/a.png", "train/dog/a.png", "train/eel/a.txt"], True, "eel has no images"),
        (["train/cat/a.png", "train/dog/a.png", "test/eel/a.png"], True, r"differ \(cat, dog, eel\)"),
        (["train/a/a.png", "train/b/a.png", "dev/a/a.png"], True, r"train and \S+/dev differ \(b\)"),
    ],
)
def test_check_says_what_is_wrong_before_anything_is_decoded(tmp_path, files, labels, message):
    for file in files or []:
        (tmp_path / "d" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / file).touch()
    with pytest.raises(BadInput, match=message) as caught:
        check(folder(tmp_path / "d"), labels=labels)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0
    assert not (tmp_path / "cache").exists()


def test_check_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom crayon.config.settings import DataConfig\nfrom crayon.data import check, check_batch\n"
        f"check(DataConfig(source='folder', root={str(labelled(tmp_path / 'd'))!r}), labels=True)\n"
        "check_batch(100, 10)\nprint({'torch', 'torchvision', 'sklearn'} & set(sys.modules))"
    )
    assert python(code).communicate() == ("set()\n", "")
