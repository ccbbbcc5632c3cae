#!/usr/bin/env python
"""Images per second through the whole system, against the bare step on data already in memory.

    python benchmarks/throughput.py mnist --repetitions 3 -- --data.root DATA

System: the command as a user runs it, on Ray, but for validation, from the end of its first epoch to the end of
its last but one; loader, augmentation, averaging, metrics, logging, W&B and checkpoints are in it. Bare: forward,
backward and optimizer step of the same networks, batch size and precision over a few batches drawn beforehand.

A machine's speed drifts by more than what is measured here. So the two take turns every few seconds: while one
computes, every process of the other is stopped (SIGSTOP). The clock of each runs only during its own turns.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TURN = 20.0
"""Seconds."""
SETTLE = 0.5
"""The first part of a turn of the bare step, which isn't timed: caches and threads are cold."""


def bare(job: str, arguments: list[str]) -> Callable[[float], float]:
    """A function that does bare steps for so many seconds and returns images per second."""
    import torch

    from crayon import data, tasks
    from crayon.allocator import keep_freed_memory
    from crayon.cli import parse
    from crayon.config import needs_labels
    from crayon.rng import Randomness
    from crayon.storage import RunFolder
    from crayon.trainer import Trainer

    keep_freed_memory()
    config = parse(job, arguments, job)
    splits = data.load(config.data, labels=needs_labels(config))
    task = tasks.build(config, splits.info())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, task, splits, RunFolder(folder, "bare"))
        batches = [batch for batch, _ in zip(trainer.loader.epoch(0), range(16), strict=False)]
    rng = Randomness(0, "bare")
    trainer.networks.train()

    def steps(seconds: float) -> float:
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            for phase, optimizer in trainer.optimizers.items():
                if len(trainer.optimizers) > 1:
                    for name, parameters in trainer.trainable.items():
                        for parameter in parameters:
                            parameter.requires_grad_(name == phase)
                optimizer.zero_grad()
                with trainer.autocast():
                    loss, _ = task.loss(phase, trainer.networks, batches[done % len(batches)], rng)
                loss.backward()
                optimizer.step()
            done += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return done * config.global_batch_size / spent

    return steps


def compare(job: str, arguments: list[str], steps: Callable[[float], float]) -> tuple[float, float]:
    """(images per second of the bare step, of the system)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "crayon.cli", job, *arguments]
        process = subprocess.Popen(
            [*command, "--eval.every-epochs", "100000", "--storage", folder, "--name", "system"],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        metrics = Path(folder) / "system" / "metrics.jsonl"

        def rows() -> list[dict]:
            return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []

        while not rows():
            if process.poll() is not None:
                sys.exit(f"the command failed: {' '.join(command)}")
            time.sleep(0.2)
        epochs = json.loads((metrics.parent / "config.json").read_text())["epochs"]
        stopped, rates = 0.0, []
        while len(rows()) < epochs - 1:
            time.sleep(TURN)
            if len(rows()) < epochs - 1:  # so that every stop lies before the last row that counts
                stopped += _turn(process.pid, steps, rates)
        process.wait()
        found = rows()
    first, last = found[0], found[epochs - 2]
    seconds = last["seconds"] - first["seconds"] - stopped
    return statistics.median(rates), (last["images"] - first["images"]) / seconds


def _turn(pid: int, steps: Callable[[float], float], rates: list[float]) -> float:
    """One turn of the bare step. Returns for how long the system stood still."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    begun = time.time()
    _signal(tree, signal.SIGSTOP)
    steps(SETTLE)
    rates.append(steps(TURN))
    _signal(tree, signal.SIGCONT)
    return time.time() - begun


def _signal(tree: list[psutil.Process], number: int) -> None:
    for process in tree:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=["mnist", "cifar10", "autoencoder", "gan"])
    parser.add_argument("--repetitions", type=int, default=3)
    known, rest = parser.parse_known_args()
    rest = [word for word in rest if word != "--"]
    steps = bare(known.job, rest)
    ratios = []
    for i in range(known.repetitions):
        limit, ours = compare(known.job, rest, steps)
        ratios.append(ours / limit)
        print(
            f"{i + 1}: bare {limit:9,.0f}  system {ours:9,.0f} images/s  ratio {ours / limit:.3f}", flush=True
        )
    print(
        f"{known.job}: system/bare median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)})"
    )


if __name__ == "__main__":
    main()
