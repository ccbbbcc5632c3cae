"""Files that someone has made to do harm: nothing in them is executed, nothing outside is touched, one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sqlite3
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import flags, tiny
from PIL import Image
from test_bad_input import execute, refused, run
from test_sweep_study import plan

from crayon import checkpoint, cli, private
from crayon.config import DataConfig
from crayon.data import cache_root, load
from crayon.errors import BadInput
from crayon.metrics import inception
from crayon.storage import RunFolder
from crayon.sweep.study import Study
from crayon.tracking import run_id


@pytest.fixture
def payload(tmp_path):
    """(a pickle, the file that it makes when it is loaded)."""
    mark = tmp_path / "executed"

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    harm = pickle.dumps(Harm())
    pickle.loads(harm)
    assert mark.exists()  # it would
    mark.rmdir()
    yield harm
    assert not mark.exists()


# Checkpoints and what else lies in a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.raises(SystemExit) as end:
        cli.main("mnist", flags(tiny("mnist", name="run", storage=str(folder), epochs=1)))
    assert end.value.code == 0
    return folder


@pytest.fixture
def theirs(finished, tmp_path):
    """A run that came from someone else, not complete."""
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path


def newest(folder: Path) -> Path:
    return checkpoint.latest(RunFolder(str(folder), "run")).path


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put `content` in a file of the newest checkpoint, with a manifest that agrees."""
    path = newest(folder)
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def resumed(capsys, folder: Path) -> tuple[int, str, str]:
    return run(capsys, "mnist", folder, epochs=1)


NAMES = ["weights.safetensors", "ema.safetensors", "optimizer.safetensors", "loop.safetensors"]


@pytest.mark.parametrize("name", [*NAMES, "state.json", "config.json", "metrics.json", "manifest.json"])
def test_a_pickle_in_place_of_a_checkpoints_file(capsys, theirs, payload, name):
    if name == "manifest.json":
        (newest(theirs) / name).write_bytes(payload)
    else:
        forge(theirs, name, payload)
    refused(resumed(capsys, theirs), "step-", name)


def test_a_torch_file_in_place_of_the_weights(capsys, theirs, payload, tmp_path):
    with zipfile.ZipFile(tmp_path / "weights", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    forge(theirs, "weights.safetensors", (tmp_path / "weights").read_bytes())
    refused(resumed(capsys, theirs), "weights.safetensors")


DEEP = "[" * 100_000
POISON = [
    {"optimizers": 3},
    {"optimizers": {"classifier": {"groups": "x", "state": {}}}},
    {"meter": []},
    {"meter": {"names": ["\x1b[31m"], "count": 1}},
    {"meter": {"names": [3], "count": float("inf")}},
    {"best": "much"},
    {"best": {"metric": "m", "value": "high", "epoch": 1, "step": 1}},
    {"best": {"metric": {}, "value": 1, "epoch": 1, "step": 1}},
    {"train_seconds": "long"},
    {"seconds": {"a": 1}},
    {"seconds": None},
]


@pytest.mark.parametrize("change", POISON, ids=str)
def test_a_poisoned_state(capsys, theirs, change):
    state = json.loads((newest(theirs) / "state.json").read_text())
    forge(theirs, "state.json", json.dumps(state | change).encode())
    code, out, err = resumed(capsys, theirs)
    refused((code, out, err), "checkpoint")
    assert "\x1b" not in out + err


def test_a_poisoned_optimizer(capsys, theirs):
    state = json.loads((newest(theirs) / "state.json").read_text())
    (optimizer,) = state["optimizers"].values()
    optimizer["groups"][0]["hyper"]["betas"] = {"value": "x"}
    forge(theirs, "state.json", json.dumps(state).encode())
    refused(resumed(capsys, theirs), "checkpoint")


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "\x1b[2J\nnothing to see"},
        {"lr": 10.0**300},
        {"epochs": int("9" * 4000)},
        {"data.root": "/etc"},
        {"data.source": {"a": [{}]}},
        {"preset": "x" * 10**6},
        {"name": "../../elsewhere", "storage": "/etc", "extra": 1, "lr": None},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_poisoned_config_is_only_compared(capsys, theirs, change):
    config = json.loads((newest(theirs) / "config.json").read_text())
    forge(theirs, "config.json", json.dumps(config | change).encode())
    code, out, err = resumed(capsys, theirs)
    refused((code, out, err), "other settings", "--name")
    assert len(err) < 600 and "\x1b" not in err


@pytest.mark.parametrize(
    "text", [DEEP, "[]", "3", '"x"', '{"seconds": "x"}', '{"a": "\\u001b[2J"}', '{"\\u001b": 1}']
)
def test_a_poisoned_result(capsys, theirs, text):
    (theirs / "run" / "result.json").write_text(text)
    code, out, err = resumed(capsys, theirs)
    refused((code, out, err), "result.json")
    assert "\x1b" not in out + err


def test_rows_that_are_none(capsys, theirs):
    (theirs / "run" / "metrics.jsonl").write_text(f"{DEEP}\n[]\n")
    assert RunFolder(str(theirs), "run").read_rows("metrics.jsonl") == []
    (theirs / "run" / "metrics.jsonl").write_text('{"step": "x"}\n')
    refused(resumed(capsys, theirs), "metrics.jsonl")


@pytest.mark.parametrize("text", [DEEP, "[]", "3", '{"study": 3}', '{"study": {"a": 1}}'])
def test_a_poisoned_sweep(capsys, tmp_path, text):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(text)
    words = ["tune", *flags(tiny("mnist", name="s", storage=str(tmp_path)))]
    refused(execute(capsys, "mnist", words), "sweep.json")


def test_an_id_that_leads_to_another_folder(tmp_path):
    (tmp_path / "run").mkdir()
    for text in ("x/../../../precious", "*", "../x", "a\nb", "\x1b[31m", "", "a" * 500):
        (tmp_path / "run" / "wandb_id").write_text(text)
        assert set(run_id(tmp_path / "run")) <= set("crayon0123456789abcdef")


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "wandb_id", "wandb", "checkpoints", "pictures/over_time"]
)
def test_links_out_of_a_run(capsys, theirs, name):
    """Not followed: a lock is emptied when it is taken, rows are added, old checkpoints and W&B folders deleted."""
    precious = theirs / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    path = theirs / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(precious / "file" if "." in name or name == "wandb_id" else precious)
    refused(resumed(capsys, theirs), name, "link")
    assert [p.name for p in precious.iterdir()] == ["file"] and (precious / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["../x", "..", ".", "/etc", "a/b", "a\0b", "~", "$HOME", "\x1b[2J", "-x y"])
def test_names_that_lead_elsewhere(capsys, tmp_path, name):
    if "\0" not in name:  # the system itself refuses it in an argument
        refused(execute(capsys, "mnist", [f"--name={name}", "--storage", str(tmp_path / "runs")]), "--name")
    with pytest.raises(BadInput):
        RunFolder(str(tmp_path), name)
    assert not list(tmp_path.iterdir())


def test_objects_whose_names_lead_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))
    remote = RunFolder("s3://bucket/x", "run")

    class Store:
        uri = "s3://bucket/x/run"
        names = (
            "../up",
            "a/../../up",
            "/abs",
            "a//b",
            "..",
            "checkpoints/../../up",
            "ok.json",
            "\x1b[2J",
            "a/b/",
        )

        def list(self):
            return list(self.names)

        def download(self, name, file):
            file.write_bytes(b"x")

    remote.store = Store()
    remote.pull()
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"ok.json", ".pull"}


# Caches, weights, downloads


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))


def objects(payload: bytes) -> bytes:
    """A .npy file that holds a pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


def huge(shape: tuple[int, ...], kind: str) -> bytes:
    header = str({"descr": kind, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


def pictures(root: Path, n: int = 4) -> Path:
    for i in range(n):
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(root / f"{i}.png")
    return root


def opened(root: Path, **changes):
    changes = {"image_size": 16, "channels": 3, "val_fraction": 0.0} | changes
    return load(DataConfig(source="folder", root=str(root), **changes), labels=False)


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "rows.npy", "info.json", "unreadable.txt"])
def test_a_cache_entry_that_someone_else_made(tmp_path, own_cache, payload, file):
    root = pictures(tmp_path / "d")
    opened(root)
    (entry,) = (p for p in (cache_root() / "images").iterdir() if p.is_dir())
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
    path = inception.weights_path()
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb, too
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", bytes(50_000_000))
    begun = time.perf_counter()
    with pytest.raises(BadInput, match="does not hold the Inception weights"):
        inception.load()
    assert time.perf_counter() - begun < 5
    monkeypatch.setattr(inception, "SHA256", "")  # and if the sum agreed
    with pytest.raises(Exception, match=r"weights_only|Unsupported|constants|version"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_in_place_of_cifar10(tmp_path, own_cache, payload, name):
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for other in ("data_batch_1", "test_batch"):
        (folder / other).write_bytes(payload)
    (folder / name).write_bytes(payload)
    with pytest.raises(BadInput, match="incomplete or damaged"):
        load(
            DataConfig(source="cifar10", root=str(tmp_path / "cifar"), image_size=32, channels=3), labels=True
        )


def test_only_the_file_of_cifar10_that_is_unpickled_is_forged(tmp_path, monkeypatch, own_cache, payload):
    """All files but one are right: the sum of each is looked at, not only of the first."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"right")
        sums[name] = hashlib.md5(b"right").hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in sums if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    (folder / "data_batch_3").write_bytes(payload)
    with pytest.raises(BadInput, match="incomplete or damaged"):
        load(
            DataConfig(source="cifar10", root=str(tmp_path / "cifar"), image_size=32, channels=3), labels=True
        )


def test_an_archive_is_compared_before_it_is_unpacked(tmp_path, own_cache, monkeypatch):
    """A tar bomb whose members lead elsewhere, in place of CIFAR-10's archive."""
    import torchvision.datasets.utils as utils
    from torchvision.datasets import CIFAR10

    bomb = tmp_path / "cifar.tar.gz"
    with tarfile.open(bomb, "w:gz") as archive:
        for name in ("../../escaped", "cifar-10-batches-py/data_batch_1"):
            member = tarfile.TarInfo(name)
            member.size = 30_000_000
            with open("/dev/zero", "rb") as zeros:
                archive.addfile(member, zeros)
    asked = []

    def served(url, target, *ignored, **also):
        asked.append(url)
        shutil.copy(bomb, target)

    monkeypatch.setattr(utils, "_urlretrieve", served)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **ignored: url)
    with pytest.raises(BadInput, match="could not be downloaded"):
        load(DataConfig(source="cifar10", image_size=32, channels=3), labels=True)
    assert asked == [CIFAR10.url]
    assert not [p for p in tmp_path.rglob("*") if p.name == "escaped" or p.name.startswith("data_batch")]


def test_idx_files_whose_sizes_overflow(tmp_path):
    from crayon.data.download import _read_idx

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
    (root / "self").symlink_to(root)
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


# Studies

WITHOUT_PLAN = '{"settings": 3, "space": {}}'


def database(tmp_path: Path) -> sqlite3.Connection:
    study = Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    number = study.add(study.suggest(), 3)
    study.report(number, 1, 0.5, 1.0, {})
    study.close()
    return sqlite3.connect(tmp_path / "study.db")


@pytest.mark.parametrize(
    "value",
    [
        "3",
        "[]",
        '"x"',
        "{}",
        WITHOUT_PLAN,
        '{"at": 1e99, "seconds": "x", "epoch": [], "metrics": 3}',
        DEEP,
        None,
    ],
)
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("study_user_attributes", "crayon:sweep"),
        ("study_user_attributes", "crayon:driver"),
        ("trial_user_attributes", "progress"),
    ],
)
def test_a_poisoned_study(tmp_path, payload, table, key, value):
    content = payload if value is None else value
    with database(tmp_path) as base:
        base.execute(f"UPDATE {table} SET value_json = ? WHERE key = ?", (content, key))
    base.close()
    # An empty one is as good as none, and what else it holds is not looked at.
    harmless = {"crayon:sweep": (), "crayon:driver": ("{}", "[]"), "progress": ("{}", WITHOUT_PLAN)}[key]
    if value in harmless:
        Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan()).close()
        return
    with pytest.raises(BadInput) as error:
        Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_pickle_as_a_study(tmp_path, payload):
    (tmp_path / "study.db").write_bytes(payload)
    with pytest.raises(BadInput, match="damaged"):
        Study(f"sqlite:///{tmp_path / 'study.db'}", "s", plan())


def test_a_storage_that_would_unpickle_is_refused(capsys, tmp_path):
    words = flags(tiny("mnist", name="s", storage=str(tmp_path)))
    refused(
        execute(capsys, "mnist", ["tune", *words, "--study", "redis://localhost/0"]),
        "--study redis://",
        "SQLite",
    )
    with pytest.raises(BadInput, match="pickles"):
        Study("rediss://localhost/0", "s", plan())


def test_a_scratch_folder_that_is_a_trap(tmp_path, monkeypatch):
    from crayon import cluster

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"crayon-ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="link"):
        cluster.scratch()
    assert private.folder(tmp_path / "elsewhere")
