"""A cluster of our own leaves nothing behind, and what workers tell their driver arrives once, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from crayon.errors import BadInput, Stopped
from crayon.launch import shared
from crayon.report.events import Progress
from crayon.system.runfolder import RunFolder

CODE = """
import atexit, os, time
from crayon.launch import cluster
with cluster.connected():
    import ray
    class Stubborn:
        def pid(self):
            atexit.register(time.sleep, 1000)
            return os.getpid()
        def leave(self):
            ray.actor.exit_actor()
    actor = ray.remote(num_cpus=0)(Stubborn).remote()
    pid = ray.get(actor.pid.remote())
    actor.leave.remote()  # it says good-bye to the cluster, and then hangs
    time.sleep(3)
    from crayon.launch.channel import Channel
    from crayon.report.events import Finished, Message
    channel = Channel()
    channel.put(Message("a step"))
    channel.put(Finished({}, "runs/run"))
    assert channel.take() == [Message("a step"), Finished({}, "runs/run")]
    assert channel.take() == []
    channel.request("restart")
    assert channel.wait() == "restart"
    channel.request("")
    channel.request("stop")
    assert channel.wait() == "stop"
    channel.request("restart")  # too late
    channel.request("")
    assert channel.wait() == "stop"
    import psutil
    print(pid, *(p.pid for p in psutil.Process().children(recursive=True)))
"""


def test_no_process_of_our_own_cluster_outlives_it():
    end = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=180, check=False
    )
    assert end.returncode == 0, end.stderr
    pid, *others = map(int, end.stdout.split())
    assert pid in others
    left = [p for p in others if _lives(p)]
    for p in left:
        os.kill(p, signal.SIGKILL)
    assert not left


def test_workers_talk_over_the_interface_that_has_the_address_of_their_node():
    from crayon.launch.backends import interface_of

    loopback = interface_of("127.0.0.1")
    assert "127.0.0.1" in [entry.address for entry in psutil.net_if_addrs()[loopback]]
    assert interface_of("203.0.113.9") is None


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_wait_for_the_one_that_decodes_longest_and_tell_how_far_it_is(monkeypatch):
    from torch.distributed import TCPStore

    from crayon.launch import backends

    monkeypatch.setattr(backends, "TELL_SECONDS", 0)
    monkeypatch.setattr(backends, "WAIT_SECONDS", 0.01)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    others = [TCPStore("127.0.0.1", store.port, is_master=False) for _ in range(2)]
    first, *late = (backends.Meeting(s, "gloo", rank, 3) for rank, s in enumerate((store, *others)))
    late[0].note("node", "a")
    assert first.noted("node", lambda: False) == "a"
    told: list[Progress] = []

    def stop() -> bool:
        if told == [Progress("waiting for 2 other workers", 0, 1)]:
            late[0].say(Progress("decoding a", 9, 10))
            late[1].say(Progress("decoding a", 3, 10))
        return len(told) == 3

    with pytest.raises(Stopped, match="Stopped before training; what was decoded is kept"):
        first.form(told.append, stop)
    assert told[1:] == [
        Progress("waiting for 2 other workers", 1, 1),
        Progress("decoding a (worker 2)", 3, 10),
    ]


def test_a_node_tells_where_it_does_not_see_what_the_driver_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "TRIES", 1)
    run = RunFolder(tmp_path, "run")
    run.create()
    token = shared.mark(run, own=False)
    shared.check(run, token)
    for problem, spoil in (
        ("has another folder of that name", lambda: (run.path / ".driver").write_text("an older run's")),
        (f"has no {run.path} of the driver's", lambda: (run.path / ".driver").unlink()),
    ):
        spoil()
        with pytest.raises(BadInput, match=f"--storage {tmp_path} is not shared .* {problem}"):
            shared.check(run, token)
    assert shared.mark(run, own=True) == ""
    shared.check(RunFolder(tmp_path, "absent"), "")


def test_a_node_of_other_versions_is_told_and_of_another_crayon_refused():
    here = shared.versions()
    assert shared.compare(here) == "" and set(here) == {"crayon", "torch"}
    told = shared.compare(here | {"torch": "1.0"})
    assert f"has torch {here['torch']}, the driver 1.0. `uv export " in told
    with pytest.raises(
        BadInput, match=rf"has crayon {here['crayon']}, the driver 9.9. `uv export .* -o constraints.txt`"
    ):
        shared.compare(here | {"crayon": "9.9"})
