"""A set in shards in an object store, decoded by Ray Data into the caches of two nodes."""

import subprocess

import numpy as np
import pytest
from disks import s3_server
from nodes import Nodes
from PIL import Image
from test_data_folder import labelled
from test_launch import command
from test_nodes import Run
from test_remote import parquet, upload, webdataset
from test_trainer import final, fit_on, same

from crayon.data.cache import PARTIAL
from crayon.system.files import unfinished


def different(root):
    """Images no two of which are the same once decoded: of copies, shards know by pixels, a folder by its files."""
    rng = np.random.default_rng(0)
    for file in sorted(labelled(root, n=40).rglob("*.png")):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    return root


@pytest.mark.faults
def test_two_nodes_train_from_a_bucket_as_two_processes_from_a_folder(tmp_path):
    pictures = different(tmp_path / "pictures")
    data = {"data__source": "folder", "data__size": None}
    alone = tmp_path / "alone"
    fit_on(2, tmp_path, ("mnist", alone, 0, data | {"data__root": str(pictures)}))
    caches = [tmp_path / "cache" / name for name in ("a", "b")]
    with s3_server() as query, Nodes(2, caches=caches) as nodes:
        for name, root in (
            ("parquet", parquet(pictures, tmp_path / "parquet", rows=5)),
            ("tar", webdataset(pictures, tmp_path / "tar")),
            ("images", pictures),
        ):
            address = upload(root, f"s3://bucket/{name}{query}")
            there = tmp_path / name
            run = Run(
                command("mnist", there, workers=2, data__root=address, **data),
                OMP_NUM_THREADS="1",
                **nodes.env,
            )
            assert run.ends() == 0, run.out
            assert same(final(there), final(alone)), name
        entries = [path for path in (caches[1] / "images").iterdir() if path.is_dir()]
        for entry in sorted(entries, key=lambda path: path.stat().st_mtime)[-2:]:  # of the last run
            begun = unfinished(entry, "left")  # as after a run in which that node was the first
            entry.rename(begun)
            (begun / PARTIAL).write_text("{}")
        again = command("mnist", tmp_path / "again", workers=2, data__root=address, **data)
        run = Run(again, OMP_NUM_THREADS="1", **nodes.env)
        assert run.ends() == 0, run.out
    assert "Traceback" not in run.out
    found = [sorted(path.name for path in (cache / "images").iterdir() if path.is_dir()) for cache in caches]
    assert len(found[0]) == 6 and found[0] == found[1]
    for entry in found[0]:
        subprocess.run(["diff", "-r", *(str(cache / "images" / entry) for cache in caches)], check=True)


@pytest.mark.faults
def test_a_broken_shard_ends_the_workers_with_a_sentence(tmp_path):
    root = webdataset(labelled(tmp_path / "pictures", n=40), tmp_path / "tar")
    shard = root / "train" / "1.tar"
    shard.write_bytes(shard.read_bytes()[:-30_000])
    caches = [tmp_path / "cache" / name for name in ("a", "b")]
    with Nodes(2, caches=caches) as nodes:
        changes = {"data__source": "folder", "data__size": None, "data__root": str(root)}
        run = Run(command("mnist", tmp_path / "runs", workers=2, **changes), **nodes.env)
        assert run.ends() == 2, run.out
    assert "1.tar is damaged or can't be read" in run.out and "Traceback" not in run.out
