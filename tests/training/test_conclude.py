"""The end of a run: what it writes on a disk that fills up, and under the longest of names."""

from __future__ import annotations

import numpy as np
import pytest
from disks import file_size_limit, s3_server
from helpers import tiny
from PIL import Image

from crayon.errors import RunFailed
from crayon.system.runfolder import RunFolder
from crayon.training import worker


def test_a_disk_that_is_full_at_the_animation_ends_in_a_sentence(tmp_path):
    config = tiny("autoencoder", epochs=2, storage=str(tmp_path), name="r")
    run = RunFolder(str(tmp_path), "r")
    run.create()
    trainer = worker.build(config, worker.load_data(config), run)
    trainer.fit()
    noise = np.random.default_rng(0)
    frames = sorted((run.path / "pictures" / "over_time").iterdir())
    assert len(frames) == 2
    for frame in frames:  # the animation is the largest file by far
        Image.fromarray(noise.integers(0, 256, (600, 600, 3), dtype=np.uint8)).save(frame)
    with file_size_limit(400_000), pytest.raises(RunFailed, match=r"over_time\.gif can't be written"):
        worker.conclude(trainer, "")
    assert (run.path / "pictures" / "learning_curves.png").exists()
    assert not list((run.path / "pictures").glob("[.]*"))
    worker.conclude(trainer, "")
    with Image.open(run.path / "pictures" / "over_time.gif") as animation:
        assert animation.n_frames == 2


def test_a_run_in_a_store_may_have_the_longest_name(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path))
    with s3_server() as query:
        config = tiny("mnist", epochs=1, storage=f"s3://bucket{query}", name="n" * 100)
        run = RunFolder(config.storage, config.name)
        run.create()
        assert worker.run_worker(config, run) is not None
        assert {"result.json", "report.html"} <= set(run.store.list())
