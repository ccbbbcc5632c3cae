"""Caches, weights, downloads and images that someone has made to do harm: nothing is executed, or fills the memory."""

from __future__ import annotations

import os
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from helpers import flags, tiny
from hostile import DEEP, huge, objects, opened, pictures
from PIL import Image
from test_bad_input import execute

from crayon.data import cache_root
from crayon.errors import BadInput
from crayon.tasks.adversarial import features

# Caches, weights, downloads


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "rows.npy", "info.json", "unreadable.txt"])
def test_a_cache_entry_that_someone_else_made(tmp_path, own_cache, payload, file):
    root = pictures(tmp_path / "d")
    opened(root)
    (entry,) = (p for p in (cache_root() / "images").glob("folder-*") if p.is_dir())
    contents = [payload, b"", objects(payload), b"PK\x03\x04" + payload]
    if file.endswith(".npy"):
        contents += [
            huge((2**61,), "<i8"),
            huge((2**40, 3, 16, 16), "|u1"),
            huge((-1, -64), "|u1"),
            huge((8,), "<i4"),
        ]
    elif file == "info.json":
        contents += [DEEP.encode(), b"[]", b'{"classes": 3}', b'{"classes": [3]}']
    else:
        contents = [None]
    for content in contents:
        (entry / file).unlink(missing_ok=True)
        if content is not None:
            (entry / file).write_bytes(content)
        with pytest.raises(BadInput, match=r"The cache entry .* is damaged") as error:
            opened(root)
        assert "\n" not in str(error.value)


def test_a_pickle_in_place_of_the_extractors_weights(tmp_path, monkeypatch, payload):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = features.weights_path()
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb, too
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", bytes(50_000_000))
    begun = time.perf_counter()
    with pytest.raises(BadInput, match="does not hold the Inception weights"):
        features.load_inception()
    assert time.perf_counter() - begun < 5
    monkeypatch.setattr(features, "SHA256", "")  # and if the sum agreed
    with pytest.raises(Exception, match=r"weights_only|Unsupported|constants|version"):
        torch.load(path, weights_only=True)


def test_idx_files_whose_sizes_overflow(tmp_path):
    from crayon.data.readers import _read_idx

    for shape in ((2**31 - 1, 2**31 - 1, 4), (-1, -4), (2**30, 2**30, 16), (0,), (2**31 - 1,)):
        path = tmp_path / "idx"
        path.write_bytes(bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes() + bytes(4))
        with pytest.raises(BadInput, match="truncated"):
            _read_idx(path)
    path.write_bytes(bytes([0, 0, 8, 3, 0]))
    with pytest.raises(BadInput, match="truncated"):
        _read_idx(path)


# Images


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is this large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_image_bombs(tmp_path, own_cache):
    root = pictures(tmp_path / "d")
    zeros = zlib.compress(bytes(30_000_000), 9)
    (root / "giant.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    (root / "wide.png").write_bytes(png(30_000, 30_000, zeros))
    (root / "more.png").write_bytes(png(16, 16, zeros))  # unpacks to far more than it says it is
    (root / "giant.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\0" * 20)
    (root / "giant.bmp").write_bytes(
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, *[0] * 6)
    )
    (root / "giant.ppm").write_bytes(b"P6 100000 100000 255\n" + bytes(100))
    begun = time.perf_counter()
    assert 4 <= len(opened(root, max_unreadable=1.0).train) <= 5
    assert time.perf_counter() - begun < 5
    listed = next((cache_root() / "images").glob("*/unreadable.txt")).read_text()
    assert listed.count("/giant.") >= 4 and "/wide.png" in listed


def test_formats_that_run_other_programs_are_not_opened(tmp_path, own_cache, monkeypatch):
    root = pictures(tmp_path / "d")
    marked = tmp_path / "ran"
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {marked}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    (root / "script.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with (
        pytest.raises(OSError),
        Image.open(root / "script.png") as image,
    ):  # what Pillow does with it by itself
        image.load()
    assert marked.exists()
    marked.unlink()
    assert len(opened(root, max_unreadable=1.0).train) == 4
    assert not marked.exists()


def test_links_and_devices_among_the_images(tmp_path, own_cache):
    root = pictures(tmp_path / "d")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "loop").symlink_to(root / "loop")
    (root / "dangling.png").symlink_to("/nowhere/x.png")
    (root / "passwd.png").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe.png")
    assert len(opened(root, max_unreadable=1.0).train) == 4
    listed = next((cache_root() / "images").glob("*/unreadable.txt")).read_text()
    assert "passwd.png" in listed and "root:" not in listed and listed.count("\n") == 1


def test_class_folders_with_odd_names(tmp_path, own_cache, capsys):
    evil = ["<img src=x onerror=alert(1)>", "\x1b[2J\x1b]0;owned\x07", "..."]
    for split in ("train", "test"):
        for name in evil[:2]:
            pictures(tmp_path / "d" / split / name, 24)
        pictures(tmp_path / "d" / split / evil[2], 1)  # hidden: no class
    config = tiny("mnist", name="run", storage=str(tmp_path / "runs"), epochs=1)
    words = flags(config)
    for flag, value in (("--data.source", "folder"), ("--data.size", "40"), ("--global-batch-size", "8")):
        words[words.index(flag) + 1] = value
    code, out, err = execute(capsys, "mnist", [*words, "--data.root", str(tmp_path / "d")])
    assert code == 0, err
    assert "\x1b" not in out + err
    page = (tmp_path / "runs" / "run" / "report.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page
