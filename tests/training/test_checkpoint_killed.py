"""Checkpoints whose writer was killed."""

import subprocess
import sys

import pytest

WRITER = """
import os, random, signal, sys, time
import torch
from crayon.training.checkpoint import Checkpoint, best, entries, latest, load, save
from crayon.system.runfolder import RunFolder

run = RunFolder(sys.argv[1], "run")
run.create()
rounds, random = int(sys.argv[2]), random.Random(0)

def content(step):
    return {"w": torch.full((60_000,), float(step)), "v": torch.arange(3) + step}

def write(step, best=False):
    parts = {"weights": content(step), "loop": content(step)}
    save(run, Checkpoint(step, parts, {"step": step}, {}), best=best)

begun = time.perf_counter()
for step in range(1, 6):
    write(step)
a_save = (time.perf_counter() - begun) / 5  # on this machine, as busy as it is

steps, bests = 5, 0  # what must be there: all that was acknowledged, or found after an earlier kill
for _ in range(rounds):
    out, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(steps + 1, steps + 10_000):
            for best_one in (False, step % 3 == 0):  # the second time the file is replaced
                write(step, best_one)
                os.write(pipe, b"%d %d\\n" % (step, best_one * step))
    os.close(pipe)
    time.sleep(random.uniform(0.0, 8 * a_save))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(out) as lines:
        for line in lines:
            steps, bests = (max(old, int(new)) for old, new in zip((steps, bests), line.split()))
    newest = latest(run).step if latest(run) else 0
    assert steps <= newest <= steps + 1, (steps, newest)  # a save may be killed before it is acknowledged
    marked = best(run).step if best(run) else 0
    assert bests <= marked <= newest and marked % 3 == 0, (bests, marked, newest)
    steps, bests = newest, marked
    for entry in entries(run):
        found = load(entry)
        assert found.state == {"step": entry.step}
        for tensors in found.tensors.values():
            assert all(torch.equal(tensors[k], v) for k, v in content(entry.step).items())
assert steps > rounds // 4 and bests > 0, (steps, bests)
save(run, Checkpoint(steps + 2, {}, {}, {}), keep=1)
left = sorted(os.listdir(run.path / "checkpoints"))
assert left == sorted({f"step-{e.step:09d}.safetensors" for e in entries(run)}) and len(left) == 2, left
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing_it_had_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), "40"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
