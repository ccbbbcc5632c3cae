"""A folder of images: what is found, what is skipped, what the cache survives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import small_disk
from helpers import pixels
from PIL import Image

from crayon.config.settings import DataConfig
from crayon.data import cache_root, check, decode, load
from crayon.data.decode import decode_all
from crayon.data.folder import walk
from crayon.errors import BadInput
from crayon.report.events import Event, Message

RED = (255, 0, 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))


def save(path: Path, colour=RED, size=(20, 20), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


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
    assert sorted(f.path for f in walk(tmp_path / "d")) == ["a.png", "x/y/b.JPG"]
    splits = load(folder(tmp_path / "d", val_fraction=0.0), labels=False)
    assert len(splits.train) == 2 and splits.val is None and splits.test is None and not splits.train.classes


def test_processes_decode_what_one_process_decodes(tmp_path):
    for i in range(150):
        save(tmp_path / "d" / f"{i:03}.png", (i, 255 - i, 7))
    (tmp_path / "d" / "100.png").write_bytes(b"damaged")
    files = sorted(p.name for p in (tmp_path / "d").iterdir())
    results = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        seen: list[int] = []
        bad = decode_all(
            tmp_path / "d", files, out, size=16, channels=3, workers=workers, progress=seen.append
        )
        assert [i for i, _ in bad] == [100] and seen[-1] == 150 and seen == sorted(seen)
        results.append(np.load(out / "images.npy"))
    assert np.array_equal(*results) and (results[0][99, 0] == 99).all()


def test_decoding_needs_no_main_guard(tmp_path):
    for i in range(520):  # enough for other processes to be started
        save(tmp_path / "d" / f"{i}.png", size=(2, 2))
    script = tmp_path / "script.py"
    script.write_text(
        "from crayon.config.settings import DataConfig\nfrom crayon.data import load\nprint('once')\n"
        f"c = DataConfig(source='folder', root={str(tmp_path / 'd')!r}, image_size=8, channels=3)\n"
        "print(len(load(c, labels=False).train))\n"
    )
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["once", "478"]


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


def test_a_decompression_bomb_is_unreadable(tmp_path, monkeypatch):
    root = tmp_path / "d"
    for i in range(9):
        save(root / f"{i}.png")
    save(root / "bomb.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    splits = load(folder(root, max_unreadable=0.2, val_fraction=0.0), labels=False)
    assert len(splits.train) == 9


# The cache


def entries() -> list[str]:
    return sorted(p.name for p in (cache_root() / "images").iterdir() if not p.name.endswith(".lock"))


def test_second_load_decodes_nothing_and_a_changed_file_decodes_anew(tmp_path):
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


def test_size_and_channels_are_part_of_the_key(tmp_path):
    root = labelled(tmp_path / "d")
    shapes = [
        load(folder(root, image_size=s, channels=c), labels=True).train.shape for s in (8, 9) for c in (1, 3)
    ]
    assert shapes == [(1, 8, 8), (3, 8, 8), (1, 9, 9), (3, 9, 9)]


LOAD = """
import sys
from crayon.config.settings import DataConfig
from crayon.data import load
config = DataConfig(source="folder", root=sys.argv[1], image_size=64, channels=3)
splits = load(config, labels=False, emit=lambda event: print(event.what, event.done, flush=True))
print("sum", sum(int(part.sum()) for part in splits.train.parts()))
"""


def test_two_processes_at_once_decode_once(tmp_path):
    for i in range(600):
        save(tmp_path / "d" / f"{i}.png", (i % 256, 1, 2))
    command = [sys.executable, "-c", LOAD, str(tmp_path / "d")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("decoding" in output for output in outputs) == [False, True]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert len(entries()) == 1


def test_a_builder_killed_half_way_leaves_nothing_that_looks_finished(tmp_path):
    for i in range(300):
        save(tmp_path / "d" / f"{i:03}.png", (i % 256, 1, 2))
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time, crayon.data.decode as d\nfirst = d.decode\n"
        "d.decode = lambda *a: (time.sleep(0.05), first(*a))[1]\n" + LOAD
    )
    process = subprocess.Popen(
        [sys.executable, str(slow), str(tmp_path / "d")], stdout=subprocess.PIPE, text=True
    )
    while not process.stdout.readline().endswith(" 64\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(entries()) == 1 and ".building-" in entries()[0]
    splits = load(folder(tmp_path / "d", image_size=64, val_fraction=0.0), labels=False)
    assert len(entries()) == 1 and ".building-" not in entries()[0]
    expected = torch.tensor([i % 256 for i in range(300)], dtype=torch.uint8)
    assert torch.equal(pixels(splits.train)[:, 0, 0, 0], expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_while_images_are_decoded(tmp_path, monkeypatch, workers):
    for i in range(200):
        save(tmp_path / "d" / f"{i}.png", size=(4, 4))
    monkeypatch.setattr(decode, "usable_cores", lambda: workers)
    monkeypatch.setattr(decode, "INLINE", 0)
    with small_disk(tmp_path / "disk", 1) as disk:
        monkeypatch.setenv("CRAYON_CACHE", str(disk / "cache"))
        with pytest.raises(BadInput, match=r"No space left in .*; free some, or set CRAYON_CACHE"):
            load(folder(tmp_path / "d", image_size=64), labels=False)
        assert entries() == []


def test_cached_reload_is_quick(tmp_path):
    for i in range(600):
        save(tmp_path / "d" / f"{i}.png", size=(4, 4))
    load(folder(tmp_path / "d"), labels=False)
    start = time.perf_counter()
    load(folder(tmp_path / "d"), labels=False)
    assert time.perf_counter() - start < 0.5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_cache(tmp_path, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setenv("CRAYON_CACHE", str(locked))
    with pytest.raises(BadInput, match="CRAYON_CACHE"):
        load(folder(labelled(tmp_path / "d")), labels=True)


def test_cache_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"Can't write to .*CRAYON_CACHE"):
        load(folder(labelled(tmp_path / "d")), labels=True)


# Bad input


def one_class(root):
    save(root / "train" / "cat" / "a.png")


def no_train(root):
    save(root / "cat" / "a.png")


def empty_class(root):
    labelled(root)
    (root / "train" / "eel").mkdir()
    (root / "test" / "eel").mkdir()


def other_classes(root):
    labelled(root)
    save(root / "test" / "eel" / "a.png")


def no_images(root):
    root.mkdir()
    (root / "a.txt").write_text("")


@pytest.mark.parametrize(
    ("make", "labels", "message"),
    [
        (lambda root: None, False, "There is no folder .*--data.root"),
        (lambda root: root.write_text(""), False, "is a file"),
        (no_images, False, "has no images"),
        (no_train, True, "has no train folder"),
        (one_class, True, "only the class folder 'cat'"),
        (empty_class, True, "eel has no images"),
        (other_classes, True, r"differ \(eel\)"),
    ],
)
def test_check_says_what_is_wrong_before_anything_is_decoded(tmp_path, make, labels, message):
    make(tmp_path / "d")
    with pytest.raises(BadInput, match=message) as caught:
        check(folder(tmp_path / "d"), labels=labels)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0
    assert not (tmp_path / "cache").exists()


def test_check_imports_no_torch(tmp_path):
    labelled(tmp_path / "d")
    code = (
        "import json, sys\nfrom crayon.config.settings import DataConfig\nfrom crayon.data import check, check_batch\n"
        f"check(DataConfig(source='folder', root={str(tmp_path / 'd')!r}, image_size=32, channels=3), labels=True)\n"
        "check_batch(100, 10, 2)\nprint(json.dumps([m in sys.modules for m in ('torch', 'torchvision', 'sklearn')]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [False, False, False]
