"""A run on two hosts of which one is cut off from the network, for a while or for good, or dies.

Each fault meets another of the four jobs, at a moment of its own.
"""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import flags, rows, tiny
from onprem import TOKEN, OnPrem, cluster, wait_for

from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint

pytestmark = pytest.mark.faults
EPOCHS = 16
CLOCKS = ("seconds", "train_seconds", "eval_seconds", "images_per_second")


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPrem]:
    with cluster(tmp_path_factory.mktemp("partition")) as started:
        yield started


def train(on: OnPrem, job: str, name: str) -> subprocess.Popen[str]:
    """The command, on the head. The last attempts' workers may sit on either host: only two together suffice."""
    config = tiny(job, workers=2, storage=str(on.runs), name=name, epochs=EPOCHS, checkpoint__keep=3)
    return on.head.popen(["python", f"jobs/{job}.py", *flags(config)], env=TOKEN)


def ends_well(process: subprocess.Popen[str], folder: Path) -> object:
    """Wait for the command's end, which must be success; what it trained."""
    out = process.communicate(timeout=500)[0]
    assert process.returncode == 0, out
    return trained(folder)


def trained(folder: Path) -> object:
    """All that a run computed: its rows, and the checksums of its last weights and optimizer."""
    computed = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows(folder)]
    last = checkpoint.latest(RunFolder.at(folder))
    assert last.step == computed[-1]["step"]
    return computed, last.digests


def under_way(on: OnPrem, job: str) -> tuple[object, Path, subprocess.Popen[str]]:
    """What an undisturbed run comes to, and the folder and the command of another in one of its first epochs; which
    one is drawn anew each time."""
    calm = ends_well(train(on, job, f"{job}-calm"), on.runs / f"{job}-calm")
    folder, epoch = on.runs / f"{job}-disturbed", random.SystemRandom().randint(1, EPOCHS // 2)
    process, metrics = train(on, job, folder.name), folder / "metrics.jsonl"
    print(f"disturbed after epoch {epoch}")
    wait_for(lambda: process.poll() is not None or (metrics.exists() and len(rows(folder)) >= epoch), 300)
    assert process.poll() is None, process.stdout.read()
    return calm, folder, process


def sentence(out: str) -> str:
    """The one line in which a command says why it ended."""
    assert "Traceback" not in out
    return re.search(r"^(?:stopped|error): .*$", out, re.MULTILINE)[0]


@pytest.mark.parametrize(("job", "seconds"), [("mnist", 5), ("cifar10", 120)])
def test_a_host_that_comes_back_is_waited_for(on, job, seconds):
    """Ray gives a host up after one minute, and starts it anew when it can be reached again."""
    calm, folder, process = under_way(on, job)
    on.worker.cut()
    time.sleep(seconds)
    on.worker.heal()
    assert ends_well(process, folder) == calm


def test_a_host_that_stays_away_ends_the_run_in_a_sentence_and_the_same_command_goes_on(on):
    calm, folder, process = under_way(on, "autoencoder")
    on.worker.cut()
    cut = time.monotonic()
    try:
        out = process.communicate(timeout=900)[0]
    finally:
        on.worker.heal()
    print(f"ended after {time.monotonic() - cut:.0f} s")
    assert process.returncode == 1, out
    assert "goes on from the last checkpoint" in sentence(out)
    wait_for(on.whole, 300)
    assert ends_well(train(on, "autoencoder", folder.name), folder) == calm


def test_a_head_that_dies_costs_the_run_no_more_than_the_epoch_under_way(on):
    calm, folder, process = under_way(on, "gan")
    on.head.kill()
    assert process.wait(10) != 0
    on.head.start()
    assert len(rows(folder)) < EPOCHS
    on.up()
    assert ends_well(train(on, "gan", folder.name), folder) == calm
