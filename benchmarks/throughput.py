#!/usr/bin/env python
"""Images per second through the whole system, against the bare step on data already in memory.

    python benchmarks/throughput.py mnist --repetitions 3 -- --data.root DATA

Bare: forward, backward and optimizer step of the same networks, batch size and precision, over a few batches drawn
beforehand; no loader, augmentation, averaging, metrics, logging, checkpoints or Ray. System: the command as a user
runs it, on Ray, from the end of its first epoch to the end of its last, validation left out. Both run in turn, each
time in a process of its own with all cores, and the ratio is that of neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def bare(job: str, arguments: list[str], seconds: float) -> float:
    """Images per second of the bare step, after a warm-up of a quarter of the time."""
    import torch

    from crayon import data, tasks
    from crayon.cli import parse
    from crayon.config import needs_labels
    from crayon.rng import Randomness
    from crayon.storage import RunFolder
    from crayon.trainer import Trainer

    config = parse(job, arguments, job)
    splits = data.load(config.data, labels=needs_labels(config))
    task = tasks.build(config, splits.info())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, task, splits, RunFolder(folder, "bare"))
        batches = [batch for batch, _ in zip(trainer.loader.epoch(0), range(16), strict=False)]
    rng = Randomness(0, "bare")
    trainer.networks.train()

    def steps(budget: float) -> tuple[int, float]:
        done, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < budget:
            for phase, optimizer in trainer.optimizers.items():
                if len(trainer.optimizers) > 1:
                    for name, parameters in trainer.trainable.items():
                        for parameter in parameters:
                            parameter.requires_grad_(name == phase)
                optimizer.zero_grad(set_to_none=True)
                with trainer.autocast():
                    loss, _ = task.loss(phase, trainer.networks, batches[done % len(batches)], rng)
                loss.backward()
                optimizer.step()
            done += 1
        return done, spent

    steps(seconds / 4)
    done, spent = steps(seconds)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done * config.global_batch_size / spent


def system(job: str, arguments: list[str]) -> float:
    """Images per second of the whole command, from its own metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "crayon.cli",
            job,
            *arguments,
            "--storage",
            folder,
            "--name",
            "system",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (Path(folder) / "system" / "metrics.jsonl").open()]
    first, last = rows[0], rows[-1]
    validation = sum(row.get("eval_seconds", 0.0) for row in rows[1:])
    return (last["images"] - first["images"]) / (last["seconds"] - first["seconds"] - validation)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=["mnist", "cifar10", "autoencoder", "gan"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the bare step, each time")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    known, rest = parser.parse_known_args()
    rest = [word for word in rest if word != "--"]
    if known.bare:
        print(bare(known.job, rest, known.seconds))
        return
    pairs = []
    for i in range(known.repetitions):
        command = [sys.executable, __file__, known.job, "--bare", "--seconds", str(known.seconds), *rest]
        limit = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        ours = system(known.job, rest)
        pairs.append((limit, ours))
        print(
            f"{i + 1}: bare {limit:9,.0f}  system {ours:9,.0f} images/s  ratio {ours / limit:.3f}", flush=True
        )
    ratios = [ours / limit for limit, ours in pairs]
    print(
        f"{known.job}: system/bare median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)})"
    )


if __name__ == "__main__":
    main()
