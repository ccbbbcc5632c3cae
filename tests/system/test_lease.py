"""The note that holds a run in an object store."""

from __future__ import annotations

import contextlib
import json
import stat

from disks import s3_server
from test_storage import wait_until

from crayon.system.runfolder import RunFolder


def test_a_run_that_was_taken_over_is_left_to_its_new_holder(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "first"))
    with s3_server() as query:
        run = RunFolder(f"s3://bucket{query}", "run")
        run.create()
        first = contextlib.ExitStack()
        first.enter_context(run.lock())
        wait_until(lambda: "driver.json" in run.store.list())
        note = run.store.read("driver.json")
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        monkeypatch.setattr("crayon.system.lease.DEAD_SECONDS", 0.0)  # this machine slept for a minute, say
        monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "second"))
        other = RunFolder(f"s3://bucket{query}", "run")
        other.create()
        with other.lock():
            wait_until(lambda: run.store.read("driver.json") != note)
            first.close()
            assert json.loads(run.store.read("driver.json"))["host"] == "elsewhere"
        assert "driver.json" not in run.store.list()


def test_what_of_a_run_in_a_store_is_kept_here_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "cache"))
    with s3_server() as query:
        RunFolder(f"s3://bucket{query}", "run").create()
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
