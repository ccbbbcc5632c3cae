#!/usr/bin/env python
"""Images per second through the whole system, against the bare step on data already in memory.

    python benchmarks/throughput.py mnist --repetitions 3 -- --data.root DATA

System: the job as a user runs it, on Ray unless `--workers 0` says otherwise, but for validation; loader, augmentation,
averaging, metrics, logging, W&B, checkpoints and the progress display are in it. Bare: forward, backward and optimizer
step of the same networks, batch size and precision over a few batches drawn beforehand.

A machine's speed drifts by more than what is measured here. So the two take turns every few seconds: while one
computes, every process of the other is stopped (SIGSTOP). The first seconds of a turn, when caches and threads are
cold, count for neither.
"""

from __future__ import annotations

import argparse
import json
import os
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
SETTLE = 2.0
"""Seconds at the start of each turn that aren't timed."""


def bare(job: str, arguments: list[str]) -> Callable[[float], float]:
    """A function that does bare steps for so many seconds and returns images per second."""
    import torch

    from crayon import data
    from crayon.cli.flags import parse
    from crayon.rng import Randomness
    from crayon.system.runfolder import RunFolder
    from crayon.training.worker import build

    config = parse(job, arguments, job)
    splits = data.load(config.data, labels=config.needs_labels)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(config, splits, RunFolder(folder, "bare"))
        batches = [batch for batch, _ in zip(trainer.loader.epoch(0), range(16), strict=False)]
    rng = Randomness(0, "bare")
    trainer.networks.train()

    def steps(seconds: float) -> float:
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            for phase, optimizer in trainer.optimizers.items():
                if len(trainer.optimizers) > 1:
                    for name, parameters in trainer.update.trainable.items():
                        for parameter in parameters:
                            parameter.requires_grad_(name == phase)
                optimizer.zero_grad()
                bf16 = trainer.config.precision == "bf16"
                with torch.autocast(trainer.device.type, torch.bfloat16, enabled=bf16):
                    loss, _ = trainer.task.loss(phase, trainer.networks, batches[done % len(batches)], rng)
                loss.backward()
                optimizer.step()
            done += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return done * config.global_batch_size / spent

    return steps


def system(job: str, arguments: list[str]) -> None:
    """The job, with a line {"at": Unix time, "step": finished steps} on standard output about once a second."""
    from crayon.cli.flags import parse
    from crayon.launch import driver as launch
    from crayon.report.events import Event, Step
    from crayon.report.terminal import RunDisplay

    begun = time.time()
    config = parse(job, arguments, job)
    with open(os.devnull, "w") as nowhere, RunDisplay(nowhere) as draw:

        def emit(event: Event) -> None:
            draw(event)
            if isinstance(event, Step):
                print(json.dumps({"at": time.time(), "step": event.step}), flush=True)

        launch.train(config, emit=emit, started=begun)


def compare(job: str, arguments: list[str], steps: Callable[[float], float]) -> tuple[float, float]:
    """(images per second of the bare step, of the system)."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["--eval.every-epochs", "100000", "--storage", folder, "--name", "system"]
        told = Path(folder) / "steps.jsonl"
        with told.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, __file__, job, "--role", "system", "--", *arguments, *own],
                stdout=output,
                start_new_session=True,
            )
        run = Path(folder) / "system"
        while not (run / "metrics.jsonl").exists():  # until the end of the first epoch
            if process.poll() is not None:
                sys.exit(f"the command failed: {' '.join(map(str, process.args))}")
            time.sleep(0.2)
        config = json.loads((run / "config.json").read_text())
        turns, rates = [], []
        while process.poll() is None:
            begun = time.time()
            time.sleep(SETTLE + TURN)
            turns.append((begun + SETTLE, time.time()))
            if process.poll() is None:
                rates.append(_turn(process.pid, steps))
        events = [json.loads(line) for line in told.read_text().splitlines()]
    done = seconds = 0.0
    for begin, end in turns:
        inside = [event for event in events if begin <= event["at"] <= end]
        if len(inside) > 1:
            done += inside[-1]["step"] - inside[0]["step"]
            seconds += inside[-1]["at"] - inside[0]["at"]
    return statistics.mean(rates), done * config["global_batch_size"] / seconds


def _turn(pid: int, steps: Callable[[float], float]) -> float:
    """One turn of the bare step."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    _signal(tree, signal.SIGSTOP)
    steps(SETTLE)
    rate = steps(TURN)
    _signal(tree, signal.SIGCONT)
    return rate


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
    parser.add_argument("--role", choices=["system", "pair"], help=argparse.SUPPRESS)
    known, rest = parser.parse_known_args()
    rest = [word for word in rest if word != "--"]
    if known.role == "system":
        return system(known.job, rest)
    if known.role == "pair":
        return print(json.dumps(compare(known.job, rest, bare(known.job, rest))))
    ratios = []
    for i in range(known.repetitions):
        # Each in processes of its own, on both sides: of processes that do the same, one is faster than another.
        command = [sys.executable, __file__, known.job, "--role", "pair", "--", *rest]
        end = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        limit, ours = json.loads(end.stdout.splitlines()[-1])
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
