"""The doctor tries the storage, forecasts the disk, and leaves all as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from disks import s3_server, small_disk
from examined import by_name, on_node
from helpers import tiny
from safetensors import safe_open

from crayon.config.names import override
from crayon.ops.doctor import storage


def test_the_storage_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    name, here = storage.probe_names()
    seen = storage.from_here(str(tmp_path / "a" / "runs"), name, here)
    assert seen["seen"] == [here] and seen["free"] > 0
    assert storage.writable("runs", seen).state == "ok"
    for place, words in ((tmp_path / "file", "a file is in the way"), (Path("/dev/full"), "/dev/full")):
        found = storage.writable(str(place), storage.from_here(str(place), name, here))
        assert found.state == "error" and words in found.text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_or_too_small_is_an_error(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        seen = storage.from_here(str(disk), *storage.probe_names())
        found = storage.room(str(disk), seen, job="gan", preset="full")
        assert found.state == "error" and "gan --preset full" in found.text
        with (disk / "much").open("wb") as file, pytest.raises(OSError):
            while True:
                file.write(bytes(65536))
                file.flush()
        seen = storage.from_here(str(disk), *storage.probe_names())
        assert "full" in storage.writable(str(disk), seen).text
        assert [p.name for p in disk.iterdir()] == ["much"]


def test_a_bucket_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path))
    from pyarrow.fs import FileSelector, FileSystem

    with s3_server() as query:
        name, here = storage.probe_names()
        seen = storage.from_here(f"s3://bucket/runs{query}", name, here)
        fs, path = FileSystem.from_uri(f"s3://bucket{query}")
        left = [f.path for f in fs.get_file_info(FileSelector(path, recursive=True))]
        missing = storage.from_here(f"s3://nobucket/runs{query}", name, here)
    assert seen["seen"] == [here] and not any(name in path for path in left)
    assert list(tmp_path.iterdir()) == []
    found = storage.writable("s3://nobucket/runs", missing)
    assert found.state == "error" and "s3://nobucket/runs" in found.text


def test_nodes_must_see_the_same_storage(tmp_path):
    good = {"seen": ["driver"], "seen_here": True, "free": 10, "made": []}
    seen = [good, good | {"seen": []}, good | {"seen_here": False}, {"failed": "it can't be written"}]
    nodes = [on_node(i) | {"storage": one} for i, one in enumerate(seen, 1)]
    found = by_name(storage.shared(str(tmp_path), nodes))
    assert found["shared"].state == "ok" and "1 node " in found["shared"].text
    assert [f.state for f in found.values()].count("error") == 3
    assert "10 bytes free where it is least" in storage.room(str(tmp_path), {"free": 99}, nodes).text


def test_the_forecast_is_the_size_of_a_real_checkpoint(runs):
    newest = max((runs / "mnist" / "checkpoints").iterdir())
    with safe_open(newest, framework="pt") as file:
        real = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
        weights = sum(file.get_tensor(k).nbytes for k in file.keys() if k.startswith("weights/"))  # noqa: SIM118
    config = tiny("mnist")
    assert storage.checkpoint_bytes(config) == pytest.approx(real, rel=0.1)
    without = storage.checkpoint_bytes(override(config, {"optim.ema_images": 0.0}))
    assert without == pytest.approx(real - weights, rel=0.1)
