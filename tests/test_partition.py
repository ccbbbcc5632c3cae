"""A run on two hosts of which one is cut off from the network, for a while or for good, or dies."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import flags, rows, tiny
from onprem import TOKEN, OnPrem, cluster, wait_for

pytestmark = pytest.mark.faults
EPOCHS = 16
CUT_AT = 4
CLOCKS = ("seconds", "train_seconds", "eval_seconds", "images_per_second")


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPrem]:
    with cluster(tmp_path_factory.mktemp("partition")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(on: OnPrem) -> object:
    process = train(on, "undisturbed")
    assert process.wait(400) == 0, process.stdout.read()
    return trained(on.runs / "undisturbed")


def train(on: OnPrem, name: str) -> subprocess.Popen[str]:
    """The command, on the head. The last attempts' workers may sit on either host: only two together suffice."""
    config = tiny("mnist", workers=2, storage=str(on.runs), name=name, epochs=EPOCHS, checkpoint__keep=3)
    return on.head.popen(["python", "jobs/mnist.py", *flags(config)], env=TOKEN)


def trained(folder: Path) -> object:
    """All that a run computed: its rows, and the checksums of its last weights and optimizer."""
    computed = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows(folder)]
    last = max(folder.glob("checkpoints/*/manifest.json"))
    assert int(last.parent.name.rpartition("-")[2]) == computed[-1]["step"]
    files = json.loads(last.read_text())["files"]
    return computed, {name: of["sha256"] for name, of in files.items() if name.endswith(".safetensors")}


def until_epoch(on: OnPrem, name: str, epoch: int, process: subprocess.Popen[str]) -> None:
    metrics = on.runs / name / "metrics.jsonl"
    wait_for(
        lambda: process.poll() is not None or (metrics.exists() and len(rows(metrics.parent)) >= epoch), 300
    )
    assert process.poll() is None, process.stdout.read()


def sentence(out: str) -> str:
    """The one line in which a command says why it ended."""
    assert "Traceback" not in out
    return re.search(r"^(?:stopped|error): .*$", out, re.MULTILINE)[0]


def test_a_few_seconds_without_network_cost_nothing_but_them(on, undisturbed):
    process = train(on, "blink")
    until_epoch(on, "blink", CUT_AT, process)
    on.worker.cut()
    time.sleep(5)
    on.worker.heal()
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    assert trained(on.runs / "blink") == undisturbed


def test_a_host_that_comes_back_in_time_is_waited_for(on, undisturbed):
    """Two minutes: Ray gives the host up after one, and starts it anew when it can be reached again."""
    process = train(on, "away")
    until_epoch(on, "away", CUT_AT, process)
    on.worker.cut()
    time.sleep(120)
    on.worker.heal()
    out = process.communicate(timeout=500)[0]
    assert process.returncode == 0, out
    assert trained(on.runs / "away") == undisturbed


def test_a_host_that_stays_away_ends_the_run_in_a_sentence_and_the_same_command_goes_on(on, undisturbed):
    process = train(on, "lost")
    until_epoch(on, "lost", CUT_AT, process)
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
    process = train(on, "lost")
    out = process.communicate(timeout=400)[0]
    assert process.returncode == 0, out
    assert trained(on.runs / "lost") == undisturbed


def test_a_head_that_dies_costs_the_run_no_more_than_the_epoch_under_way(on, undisturbed):
    process = train(on, "headless")
    until_epoch(on, "headless", CUT_AT, process)
    on.head.kill()
    assert process.wait(10) != 0
    on.head.start()
    before = len(rows(on.runs / "headless"))
    assert before < EPOCHS
    on.up()
    process = train(on, "headless")
    out = process.communicate(timeout=400)[0]
    assert process.returncode == 0, out
    assert trained(on.runs / "headless") == undisturbed
