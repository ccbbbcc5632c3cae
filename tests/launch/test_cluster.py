"""A cluster of our own leaves nothing behind, and what workers tell their driver arrives once, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

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
