import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from disks import file_size_limit, s3_server, small_disk
from hostile import DEEP

from crayon.errors import BadInput, RunFailed
from crayon.system.objectstore import ObjectStore, patiently
from crayon.system.runfolder import RunFolder


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path, "run")
    run.create()
    return run


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".lock"))


NAMES = ("", "..", "a/b", "../a", "/etc", "a\\b", "a\0b", ".hidden", "-rf", "~", "\x1b[2J", "é", "x" * 101)


@pytest.mark.parametrize("name", NAMES)
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(BadInput, match="--name"):
        RunFolder(tmp_path, name)


@pytest.mark.parametrize("storage", ["ftp://host/a", "s3://", "gs:///", "http://bucket/x"])
def test_impossible_storage_is_refused(storage):
    with pytest.raises(BadInput, match="--storage"):
        RunFolder(storage, "run")


def test_create_makes_an_absolute_folder_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunFolder("some/where", "run")
    assert not (tmp_path / "some").exists()
    run.create()
    run.create()
    assert run.path == Path(run.storage, "run") == tmp_path / "some" / "where" / "run"
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700 and visible(run.path) == []
    (tmp_path / "file").write_text("")
    for storage, name in ((tmp_path / "file", "run"), (tmp_path, "file")):
        with pytest.raises(BadInput, match="a file is in the way; choose another folder"):
            RunFolder(storage, name).create()


@pytest.mark.parametrize("name", ["../out.json", "/etc/x", "a/../../b", "", "a//b", ".hidden", "a/.b"])
def test_no_file_name_leads_out_of_the_folder(run, name):
    for method, content in (
        (run.write_bytes, [b""]),
        (run.write_json, [{}]),
        (run.append_row, [{}]),
        (run.read_json, []),
        (run.fetch, []),
        (run.remove, []),
    ):
        with pytest.raises(BadInput, match="can't be the name of a file"):
            method(name, *content)


def test_json_round_trip_with_what_json_cannot_say_as_null(run):
    run.write_json("deep/er.json", {"a": 0.1, "b": [float("nan"), (float("inf"), 1)], "c": None})
    assert run.read_json("deep/er.json") == {"a": 0.1, "b": [None, [None, 1]], "c": None}
    assert run.read_json("none.json") is None
    run.write_bytes("bad.json", b"{")
    with pytest.raises(BadInput, match=r"bad\.json can't be read as JSON"):
        run.read_json("bad.json")


def test_rows_survive_a_torn_line(run):
    assert run.read_rows("rows.jsonl") == []
    for step in (1, 2, 3):
        run.append_row("rows.jsonl", {"step": step, "loss": float("nan")})
    with (run.path / "rows.jsonl").open("ab") as file:
        file.write(f"{DEEP}\n[]\n".encode() + b'{"step": 4, "lo')  # killed while writing
    assert [row["step"] for row in run.read_rows("rows.jsonl")] == [1, 2, 3]
    run.append_row("rows.jsonl", {"step": 5})
    assert [row["step"] for row in run.read_rows("rows.jsonl")] == [1, 2, 3, 5]
    run.truncate_rows("rows.jsonl", lambda row: row["step"] <= 2)
    run.append_row("rows.jsonl", {"step": 3})
    lines = (run.path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    run.truncate_rows("never-written.jsonl", lambda row: True)
    assert not (run.path / "never-written.jsonl").exists()


HOLD = """
import sys, time
from crayon.system.runfolder import RunFolder
run = RunFolder(sys.argv[1], "run")
with run.lock():
    (run.path / ".tmp-left").mkdir()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_held_by_one_process_until_it_is_killed(run, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            held = r"Another process is training .* choose another --name"
            with pytest.raises(BadInput, match=held), run.lock():
                pass
            assert visible(run.path) == [".tmp-left"]  # who doesn't hold the run removes nothing
        finally:
            holder.send_signal(signal.SIGKILL)
    with run.lock():
        assert visible(run.path) == []
        for other in (run, RunFolder(tmp_path, "run")):  # nor does this process hold it twice
            with pytest.raises(BadInput, match="Another process"), other.lock():
                pass
    with run.lock():
        pass


def test_a_write_that_fails_midway_leaves_the_old_content(run):
    run.write_bytes("file.bin", b"old")
    failure = r"file\.bin can't be written \(File too large\); checkpoints written before are whole"
    with file_size_limit(10_000), pytest.raises(RunFailed, match=failure):
        run.write_bytes("file.bin", bytes(20_000))
    assert (run.path / "file.bin").read_bytes() == b"old"
    assert visible(run.path) == ["file.bin"]


def test_full_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        run = RunFolder(disk, "run")
        run.create()
        run.write_bytes("file.bin", b"old")
        with pytest.raises(RunFailed, match="the disk is full"):
            run.write_bytes("file.bin", bytes(4 << 20))
        assert (run.path / "file.bin").read_bytes() == b"old"
        assert visible(run.path) == ["file.bin"]
        with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        full = r"--storage: .* the disk is full or the quota used up; choose another"
        with pytest.raises(BadInput, match=full):
            RunFolder(disk, "other").create()
        with pytest.raises(RunFailed, match="the disk is full"):
            for step in range(10_000):
                run.append_row("rows.jsonl", {"step": step})


def test_read_only_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(BadInput, match=r"written \(Read-only file system\); choose another folder"):
            RunFolder(disk, "run").create()


@pytest.fixture(scope="module")
def s3():
    with s3_server() as query:
        yield query


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Call it to move to a fresh machine: one with an empty cache."""
    monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / "first"))
    return lambda name: monkeypatch.setenv("CRAYON_CACHE", str(tmp_path / name))


def test_a_run_in_an_object_store_goes_on_on_another_machine(s3, machine):
    storage = f"s3://bucket/some/where{s3}"
    run = RunFolder(storage, "moves")
    assert run.uri == "s3://bucket/some/where/moves" and run.storage == storage
    run.create()
    for private in (run.path, Path(os.environ["CRAYON_CACHE"])):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    run.append_row("rows.jsonl", {"step": 1})
    run.write_bytes("pictures/grid.png", b"png")
    run.write_json("checkpoints/other.json", {})
    run.push()
    run.append_row("rows.jsonl", {"step": 2})  # never pushed: lost with its machine

    machine("second")
    moved = RunFolder(storage, "moves")
    assert moved.path != run.path
    moved.pull()
    assert moved.read_rows("rows.jsonl") == [{"step": 1}]
    assert (moved.path / "pictures" / "grid.png").read_bytes() == b"png"
    assert visible(moved.path) == [".pull", "pictures", "rows.jsonl"]
    moved.append_row("rows.jsonl", {"step": 3})
    moved.push()
    run.pull()
    assert run.read_rows("rows.jsonl") == [{"step": 1}, {"step": 3}]
    moved.remove("pictures")
    assert "pictures/grid.png" not in run.store.list()


def test_only_what_changed_is_pushed(s3, machine):
    run = RunFolder(f"s3://bucket{s3}", "changes")
    run.create()
    run.write_bytes("a", b"1")
    run.write_bytes("b", b"1")
    run.push()
    run.store.write("a", b"by another writer")
    run.write_bytes("b", b"22")
    run.push()
    assert (run.store.read("a"), run.store.read("b")) == (b"by another writer", b"22")


def test_names_from_a_store_never_lead_out_of_the_folder(s3, machine):
    run = RunFolder(f"s3://bucket{s3}", "hostile")
    run.create()
    for name in ("good", "..\\bad", "a b", ".ssh/keys", "\x1b[2J", "checkpoints/.x"):
        run.store.write(name, b"")
    run.pull()
    assert visible(run.path) == [".pull", "good"]


def test_two_stores_share_no_staging_folder_and_credentials_are_not_shown(machine):
    uris = ("s3://a/x", "s3://b/x", "gs://a/x", "s3://a/x?region=eu-west-1", "s3://a/x/run")
    assert len({RunFolder(uri, "run").path for uri in uris}) == len(uris)
    run = RunFolder("s3://key:secret@a/x", "run")
    assert run.uri == "s3://a/x/run" and "secret" not in f"{run!r}{run.path}"
    assert run.path == RunFolder("s3://a/x", "run").path


def test_a_missing_bucket_and_a_mistyped_option(s3, machine):
    missing = r"can't write to s3://nowhere/run \(AWS Error NO_SUCH_BUCKET: .*\)\.$"
    with pytest.raises(BadInput, match=missing):
        RunFolder(f"s3://nowhere{s3}", "run").create()
    with pytest.raises(BadInput, match=r"s3://bucket/run can't be opened"):
        RunFolder(f"s3://bucket{s3}&colour=red", "run").create()


@pytest.mark.slow  # the client tries three times
def test_losing_the_store_while_running(machine):
    with s3_server() as query:
        run = RunFolder(f"s3://bucket{query}", "run")
        run.create()
    run.patience = 1.0
    run.write_bytes("a", b"1")
    failed = r"s3://bucket/run can't be written \(AWS Error .*the same command resumes"
    with pytest.raises(RunFailed, match=failed):
        run.push()
    with pytest.raises(BadInput, match="can't read s3://bucket/run"):
        run.pull()


def test_a_store_that_is_away_for_a_while_is_waited_for_and_told_once():
    told, failures = [], [OSError("AWS Error NETWORK_CONNECTION during PutObject operation: refused")] * 2

    def write() -> None:
        if failures:
            raise failures.pop()

    patiently(write, seconds=60, tell=told.append, where="s3://bucket/run")
    assert told == [
        "s3://bucket/run can't be reached (AWS Error NETWORK_CONNECTION: refused); trying for 60 s."
    ]


def test_a_run_in_a_store_is_held_against_other_machines_whatever_their_clocks_say(s3, machine, monkeypatch):
    run = RunFolder(f"s3://bucket{s3}", "held")
    run.create()
    first = contextlib.ExitStack()
    first.enter_context(run.lock())
    (note,) = run.store.times("driver")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    monkeypatch.setattr("time.time", lambda: 0.0)  # this machine's clock is wrong by decades
    machine("second")
    other = RunFolder(f"s3://bucket{s3}", "held")
    other.create()
    held = r"is training s3://bucket/held: its last sign of life is \d s old"
    with pytest.raises(BadInput, match=held), other.lock():
        pass
    assert list(run.store.times("driver")) == [note]  # who is refused leaves none
    monkeypatch.setattr("crayon.system.lease.DEAD_SECONDS", 0.0)  # the first one slept for a minute, say
    with other.lock():
        assert note not in run.store.times("driver")
        first.close()
        (note,) = run.store.times("driver")
        assert json.loads(run.store.read(note))["host"] == "elsewhere"
        assert other.stored() == []
    assert run.store.times("driver") == {}


@pytest.mark.parametrize("left", [(), ("config.json", "pictures/a.png"), ("checkpoints/step-000000001.x",)])
def test_a_wrong_command_leaves_no_folder_but_what_was_trained_or_there_before(tmp_path, left):
    def wrong(run: RunFolder) -> None:
        run.create()
        with pytest.raises(BadInput), run.lock():
            for name in left:
                run.write_bytes(name, b"x")
            raise BadInput("There is no folder /nonexistent.")

    run = RunFolder(tmp_path, "run")
    wrong(run)
    assert list(tmp_path.iterdir()) == ([run.path] if "checkpoints/step-000000001.x" in left else [])
    run.create()
    wrong(RunFolder(tmp_path, "run"))
    assert run.path.exists()


def test_of_a_store_a_wrong_command_deletes_what_it_made_and_nothing_else(s3, machine):
    def wrong(name: str) -> list[str]:
        run = RunFolder(f"s3://bucket/some/where{s3}", name)
        run.create()
        with pytest.raises(BadInput), run.lock():
            run.write_json("config.json", {})
            run.push("config.json")
            raise BadInput("There is no folder /nonexistent.")
        assert run.store is not None
        return run.store.list()

    assert wrong("made") == []
    theirs = ObjectStore(f"s3://bucket/some/where{s3}", "theirs")
    theirs.write("notes.txt", b"x")
    assert "notes.txt" in wrong("theirs")
