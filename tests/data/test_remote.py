"""Sets in object stores and in shards: the same images in the same order as from a folder of this machine."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import s3_server
from helpers import pixels
from PIL import Image
from shards import add, files, parquet, same, table, upload, webdataset
from test_data_folder import entries, folder, labelled, save

from crayon.config.settings import AugmentConfig
from crayon.data import Loader, arrays, cache_root, check, decode, decoded, load, training_images
from crayon.errors import BadInput
from crayon.report.events import Event, Message, Progress

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return labelled(tmp_path_factory.mktemp("pictures") / "d", n=8)


@pytest.fixture(scope="module")
def store():
    with s3_server() as query:
        yield query


@pytest.mark.parametrize("label", ["name", "number"])
@pytest.mark.parametrize("packed", [True, False])
def test_parquet_files_are_the_folder_they_were_made_of(pictures, tmp_path, label, packed):
    root = parquet(pictures, tmp_path / "shards", label, packed)
    check(folder(root), labels=True)
    assert same(load(folder(root), labels=True), load(folder(pictures), labels=True))


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_webdataset_shards_are_the_folder_they_were_made_of(pictures, tmp_path, kind):
    root = webdataset(pictures, tmp_path / "shards", kind)
    check(folder(root), labels=True)
    assert same(load(folder(root), labels=True), load(folder(pictures), labels=True))


def test_a_bucket_is_the_folder_it_was_copied_from(pictures, tmp_path, store):
    expected = load(folder(pictures), labels=True)
    for name, root in (("images", pictures), ("tar", webdataset(pictures, tmp_path / "tar"))):
        config = folder(upload(root, f"s3://bucket/{name}{store}"))
        check(config, labels=True)
        known = training_images(config, labels=True)
        assert known == (training_images(folder(pictures), labels=True) if name == "images" else None)
        before = len(entries())
        assert same(load(config, labels=True), expected)
        assert len(entries()) == before + 2
        assert same(load(config, labels=True), expected) and len(entries()) == before + 2


def test_without_a_cache_the_same_images_are_read_whenever_they_are_used(pictures, tmp_path, store):
    expected = load(folder(pictures), labels=True)
    before = len(entries())
    tar = webdataset(pictures, tmp_path / "tar", compressed=False)
    for root in (pictures, upload(pictures, f"s3://bucket/on-the-fly{store}"), tar):
        splits = load(folder(root, cache="off"), labels=True)
        assert same(splits, expected)
        options = {
            "global_batch_size": 4,
            "rank": 1,
            "world_size": 2,
            "augment": AugmentConfig(flip=True, shift=2),
        }
        for residency, resident in (("auto", False), ("device", True)):
            loader = Loader(splits.train, residency=residency, **options)  # the other one reads its file
            assert loader.resident == resident
            pairs = zip(
                loader.epoch(1, start=1),
                Loader(expected.train, residency="stream", **options).epoch(1, start=1),
                strict=True,
            )
            assert all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)
    assert {name.partition("-")[0] for name in entries()[before:]} == {"index"}
    for root in (parquet(pictures, tmp_path / "parquet"), webdataset(pictures, tmp_path / "tar.gz")):
        with pytest.raises(
            BadInput, match=r"out of which single images can't be read fast; leave --data\.cache on"
        ):
            load(folder(root, cache="off"), labels=True)


def test_classes_called_by_numbers_are_in_the_order_of_numbers(pictures, tmp_path):
    content = [content for *_, content in files(pictures)]
    root = table(tmp_path / "x.parquet", image=content, label=[10 * (i % 4) - 1 for i in range(32)])
    with pytest.raises(
        BadInput, match=r"8 of 32 images in .* have no label"
    ):  # -1 is what `datasets` means by that
        load(folder(root), labels=True)
    root = table(tmp_path / "x.parquet", image=content, label=[5 * (i % 4) for i in range(32)])
    train = load(folder(root, val_fraction=0.0, test_fraction=0.0), labels=True).train
    assert train.classes == ("0", "5", "10", "15") and train.labels.tolist() == [0, 1, 2, 3] * 8


def test_a_validation_split_of_its_own_is_used_as_it_is(pictures, tmp_path):
    root = parquet(pictures, tmp_path / "data")
    (root / "test-00001-of-00002.parquet").rename(root / "validation-00000-of-00001.parquet")
    splits = load(folder(root), labels=True)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 9, 7)


# Bad input


def test_a_shard_without_images_or_labels_is_named_with_what_it_has(pictures, tmp_path, store):
    content = [content for *_, content in files(pictures)]
    root = table(tmp_path / "a" / "x.parquet", picture=content, kind=[1] * 32)
    with pytest.raises(BadInput, match=r"x\.parquet has no column 'image'; its columns are picture, kind"):
        load(folder(root), labels=False)
    root = table(tmp_path / "b" / "x.parquet", image=content, kind=[1] * 32)
    with pytest.raises(BadInput, match=r"has no column 'label'; its columns are image, kind"):
        load(folder(root), labels=True)
    assert len(load(folder(root, val_fraction=0.0), labels=False).train) == 32
    root = table(tmp_path / "c" / "x.parquet", image=content, label=[0.5] * 32)
    with pytest.raises(BadInput, match=r"'label' of .* is double; it must hold integers or strings"):
        load(folder(root), labels=True)
    root = table(tmp_path / "d" / "x.parquet", image=[[1, 2]], label=[0])
    with pytest.raises(BadInput, match=r"'image' of .* is list<.*>; it must hold the bytes of image files"):
        load(folder(root), labels=True)
    (tmp_path / "e").mkdir()
    with tarfile.open(tmp_path / "e" / "x.tar", "w") as archive:
        add(archive, "a.txt", b"words")
    with pytest.raises(BadInput, match=r"x\.tar has no images but a\.txt"):
        load(folder(tmp_path / "e"), labels=False)
    for root in ("s3://nobody", "s3://bucket/nothing"):
        with pytest.raises(BadInput, match=f"There is no folder {root}; set --data.root"):
            check(folder(f"{root}{store}"), labels=False)
    with pytest.raises(BadInput, match=r"webdav://x must be a file or begin with s3:// or gs://"):
        check(folder("webdav://x"), labels=False)


def test_a_broken_shard_is_refused_and_a_broken_image_is_left_out_and_listed(pictures, tmp_path):
    root = webdataset(pictures, tmp_path / "a")
    shard = root / "train" / "1.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2 - 100])
    with pytest.raises(
        BadInput, match=r"1\.tar is damaged or can't be read \(.*\); write it anew or remove it"
    ):
        load(folder(root), labels=True)
    shard.write_bytes(whole.replace(b"IHDR", b"IHDx", 1))
    events: list[Event] = []
    splits = load(folder(root, max_unreadable=0.1), labels=True, emit=events.append)
    assert len(splits.train) + len(splits.val) == 15
    (text,) = (event.text for event in events if isinstance(event, Message))
    assert text.startswith("left out 1 unreadable of 16 images")
    assert "cat/3.png in" in Path(text.rsplit(" ", 1)[1]).read_text()
    with pytest.raises(BadInput, match=r"1 of 16 images .* can't be read .*--data\.max-unreadable"):
        load(folder(root, max_unreadable=0.05), labels=True)
    parquet(pictures, tmp_path / "b")
    shard = tmp_path / "b" / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(BadInput, match=r"train-00001-of-00002\.parquet is damaged"):
        load(folder(tmp_path / "b"), labels=True)


def test_without_a_cache_the_next_of_its_class_stands_for_an_unreadable_image(tmp_path):
    root = labelled(tmp_path / "d")
    (root / "train" / "cat" / "3.png").write_bytes(b"no image")
    events: list[Event] = []
    config = folder(root, cache="off", max_unreadable=0.2, val_fraction=0.0)
    images = load(config, labels=True, emit=events.append).train
    assert len(images) == 8 and not events
    first = pixels(images)
    assert torch.equal(first[3], first[0]) and torch.equal(first, pixels(images))
    (event,) = events
    assert "cat/3.png can't be read" in event.text and "the next one of its class" in event.text
    with pytest.raises(BadInput, match=r"3\.png can't be read .* of 8; .*--data\.max-unreadable"):
        pixels(load(folder(root, cache="off", val_fraction=0.0), labels=True).train)


# As a folder of this machine


def test_a_bucket_is_read_by_the_rules_of_a_folder(pictures, tmp_path, store):
    """Splits by any name, class folders alone, what is left out, groups, pixels that can't be read."""
    root = tmp_path / "d"
    for i in range(8):
        for kind in ("cat", "dog"):
            save(root / "plain" / kind / f"p{i // 2}-{i}.png", (20 * i, 0, 9 * (kind == "dog")))
            save(root / "named" / ("Valid" if i < 2 else "TRAINING") / kind / f"{i}.png", (20 * i, 9, 0))
    (root / "plain" / "cat" / "p0-0.png").write_bytes(b"no image")
    save(root / "plain" / "stray.png")
    (root / "plain" / "dog" / "about.txt").write_text("words")
    save(root / "plain" / "@eaDir" / "cat" / "1.png")
    save(root / "plain" / "dog" / "run" / "pictures" / "0.png")
    (root / "plain" / "dog" / "run" / "metrics.jsonl").write_text("{}")
    for place in (root / "plain", root / "named" / "TRAINING"):
        with tarfile.open(place / "photos.tar.gz", "w:gz") as archive:  # no shard: images lie beside it
            archive.add(pictures, "photos")
    upload(root, f"s3://bucket/rules{store}")
    for name, changes in (("plain", {"groups": r"p\d", "max_unreadable": 0.1}), ("named", {})):
        here = load(folder(root / name, **changes), labels=True)
        there = load(folder(f"s3://bucket/rules/{name}{store}", **changes), labels=True)
        assert same(here, there) and here.fingerprint == there.fingerprint
        left = " ".join(there.about["left_out"]).replace(f"s3://bucket/rules/{name}", str(root / name))
        assert sorted(re.split("[ ,]+", left)) == sorted(re.split("[ ,]+", " ".join(here.about["left_out"])))
        assert here.about["splits"] == there.about["splits"]
        assert there.about["root"] == f"s3://bucket/rules/{name}"
        assert (here.test is None) == (name == "named")
    with pytest.raises(BadInput, match=r"s3://bucket/rules/plain/cat has no class folders"):
        load(folder(f"s3://bucket/rules/plain/cat{store}"), labels=True)


def test_images_that_are_not_square_and_padded_are_the_same_from_shards_and_without_a_cache(
    pictures, tmp_path
):
    form = {"image_size": "16x24", "fit": "pad"}
    expected = load(folder(pictures, **form), labels=True)
    for root, cache in (
        (parquet(pictures, tmp_path / "parquet"), "on"),
        (webdataset(pictures, tmp_path / "tar", compressed=False), "off"),
        (pictures, "off"),
    ):
        assert same(load(folder(root, cache=cache, **form), labels=True), expected)


def test_deep_images_need_a_range_where_they_are_scaled_before_all_are_known(tmp_path):
    root = tmp_path / "d"
    for i in range(8):
        deep = Image.fromarray(np.full((20, 20), 1000 * i, np.uint16))
        (root / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        deep.save(root / "train" / "ab"[i % 2] / f"{i}.png")
    content = [(root / "train" / "ab"[i % 2] / f"{i}.png").read_bytes() for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    shards = table(tmp_path / "shards" / "train-0.parquet", image=content, label=[*"aaaabbbb"])
    expected = load(folder(root, channels=1), labels=True)
    assert expected.train.limits == (0, 7000)
    with pytest.raises(BadInput, match=r"row 0 has more than 8 bits.* --data\.range"):
        load(folder(shards, channels=1), labels=True)
    with pytest.raises(BadInput, match=r"0\.png has more than 8 bits"):
        pixels(load(folder(root, channels=1, cache="off", val_fraction=0.0), labels=True).train)
    for place, cache in ((shards, "on"), (root, "off")):
        splits = load(folder(place, channels=1, cache=cache, range="0..7000"), labels=True)
        assert same(splits, expected) and splits.train.limits == (0, 7000)


def test_without_pixels_a_set_is_known_by_its_files(pictures, tmp_path):
    config = folder(shutil.copytree(pictures, tmp_path / "d"), cache="off")
    before = load(config, labels=True).fingerprint
    assert load(config, labels=True).fingerprint == before
    assert (
        load(folder(shutil.copytree(pictures, tmp_path / "e"), cache="off"), labels=True).fingerprint
        == before
    )
    save(tmp_path / "d" / "train" / "cat" / "0.png", (1, 2, 3), size=(9, 9))
    after = load(config, labels=True).fingerprint
    assert after["train"] != before["train"] and after["test"] == before["test"]


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_decoding_that_was_interrupted_goes_on_where_it_was(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "KEEP_SECONDS", 0)
    for module in (decode, decoded):
        monkeypatch.setattr(module, "FILES_AT_ONCE", 2)
    pictures = labelled(tmp_path / "pictures", n=6)
    root = {"folder": lambda found, to: found, "parquet": parquet, "webdataset": webdataset}[kind](
        pictures, tmp_path / "set"
    )
    if kind == "folder":
        (pictures / "train" / "cat" / "1.png").write_bytes(b"damaged")
    config, read = folder(root, max_unreadable=0.5), []

    def emit(event: Event) -> None:
        if isinstance(event, Progress):
            read.append(event.what)
            if len(read) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(config, labels=True, emit=emit)
    images = cache_root() / "images"
    (left,) = images.glob(".tmp-*")
    assert 0 < json.loads((left / "partial.json").read_text())["done"] < 12
    resumed = load(config, labels=True, emit=emit)
    assert 1 < read[5:].count(read[4]) < 7 and not list(images.glob(".tmp-*"))  # 7 from the beginning
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "other"))
    assert load(config, labels=True).fingerprint == resumed.fingerprint
    one, other = (
        {path.relative_to(place): path.read_bytes() for path in place.glob("*/*.*")}
        for place in (images, cache_root() / "images")
    )
    assert one == other
