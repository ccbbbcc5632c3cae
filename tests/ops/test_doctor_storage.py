"""The doctor tries the storage, forecasts the disk and weighs the upload, and leaves all as it was."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest
from disks import s3_server, small_disk
from examined import by_name, on_node
from helpers import tiny
from safetensors import safe_open

from crayon.config.names import override
from crayon.ops.doctor import storage, upload


def test_the_storage_is_tried_and_left_as_it_was(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    name, here = storage.probe_names()
    seen = storage.from_here(str(tmp_path / "a" / "runs"), name, here)
    assert seen["seen"] == [here] and seen["free"] > 0
    assert storage.writable("runs", seen).state == "ok"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_storage_that_cant_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place, words in ((tmp_path / "file", "a file is in the way"), (Path("/dev/full"), "/dev/full")):
        seen = storage.from_here(str(place), *storage.probe_names())
        found = by_name([storage.writable(str(place), seen)])["here"]
        assert found.state == "error" and words in found.text


def test_a_disk_that_is_full_or_too_small_is_an_error(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        seen = storage.from_here(str(disk), *storage.probe_names())
        found = by_name([storage.room(str(disk), seen, {}, "gan", "full")])["disk"]
        assert found.state == "error" and "gan --preset full" in found.text
        with (disk / "much").open("wb") as file, pytest.raises(OSError):
            while True:
                file.write(bytes(65536))
                file.flush()
        seen = storage.from_here(str(disk), *storage.probe_names())
        assert "full" in by_name([storage.writable(str(disk), seen)])["here"].text
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
    nodes = [on_node(1), on_node(2), on_node(3), on_node(4)]
    good = {"seen": ["driver"], "seen_here": True, "free": 10, "made": []}
    seen = [good, good | {"seen": []}, good | {"seen_here": False}, {"failed": "it can't be written"}]
    found = by_name(
        storage.shared(str(tmp_path), nodes, {n["id"]: s for n, s in zip(nodes, seen, strict=True)})
    )
    assert found["shared"].state == "ok" and "1 node " in found["shared"].text
    assert [f.state for f in found.values()].count("error") == 3


def test_the_forecast_is_the_size_of_a_real_checkpoint(tmp_path):
    from crayon.launch import driver as launch

    config = tiny("mnist", epochs=1, name="run", storage=str(tmp_path), model__width=32, data__size=64)
    launch.train(config, emit=lambda event: None, started=time.time())
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    real = newest.stat().st_size
    assert storage.checkpoint_bytes(config) == pytest.approx(real, rel=0.1)
    with safe_open(newest, framework="pt") as file:
        weights = sum(file.get_tensor(k).nbytes for k in file.keys() if k.startswith("weights/"))  # noqa: SIM118
    without = storage.checkpoint_bytes(override(config, {"optim.ema_images": 0.0}))
    assert without == pytest.approx(real - weights, rel=0.1)


# Upload.


def big(path: Path, megabytes: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(int(megabytes * 2**20))


def test_the_upload_is_what_ray_packs(tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    for name in (
        "a.py",
        "sub/b.bin",
        "sub/no.log",
        "runs/x",
        ".git/objects/o",
        ".venv/c",
        "kept/d",
        "deep/e/f.tmp",
    ):
        big(tmp_path / "w" / name, 0.1)
    (tmp_path / "w" / ".gitignore").write_text("runs/\n*.log\n")
    (tmp_path / "w" / "deep" / ".rayignore").write_text("*.tmp\n")
    create_package(
        str(tmp_path / "w"),
        tmp_path / "p.zip",
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
    )
    with zipfile.ZipFile(tmp_path / "p.zip") as package:
        packed = {(i.file_size, i.filename) for i in package.infolist() if not i.is_dir()}
    found, whole = upload.list_files(tmp_path / "w")
    assert whole and set(found) == packed
    assert {name for _, name in found} == {"a.py", "sub/b.bin", "kept/d", ".gitignore", "deep/.rayignore"}


def test_a_large_upload_names_its_largest_files(tmp_path):
    big(tmp_path / "data" / "faces.npz", 30)
    assert upload.working_dir(tmp_path / "nowhere").state == "ok"
    found = upload.working_dir(tmp_path)
    assert found.state == "warning" and "data/faces.npz (30 MiB)" in found.text and ".rayignore" in found.mend
    big(tmp_path / "more.bin", 600)
    found = upload.working_dir(tmp_path)
    assert found.state == "error" and "more.bin (600 MiB)" in found.text
    (tmp_path / ".rayignore").write_text("*.bin\ndata/\n")
    assert upload.working_dir(tmp_path).state == "ok"


def test_this_repository_is_a_small_upload():
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").exists():
        assert not any(name.startswith(("docs/", ".git/")) for _, name in upload.list_files(root)[0])
