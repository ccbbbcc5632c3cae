#!/usr/bin/env python
"""What a sweep is worth, and what it costs.

    python benchmarks/sweeps.py quality --data.root DATA      # best validation value against epochs spent
    python benchmarks/sweeps.py overhead                      # seconds per trial beyond its training
    python benchmarks/sweeps.py rate --data.root DATA         # trials per hour against a shell loop

quality: our search (TPE and early stopping), random search and a grid, each with the same total of epochs and several
seeds, on 6,000 images of MNIST, a third of them held out. The trials of a search run one at a time, through the same
study, stopping rule and loop as `crayon mnist tune`. All three know the same ranges, and all begin with the preset.
rate: the same trials (random parameters, no early stopping) by `tune` and by one process per trial, in turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SUBSET = ["--data.size", "6000", "--data.val-fraction", "0.33", "--epochs", "6", "--global-batch-size", "64"]
"""Enough held-out images, 1,980, to tell settings apart."""
GRID = {"lr": 5, "beta1": 3, "epochs": 2}
"""Points per dimension: 30 in all, in an order that the seed decides."""


def quality(arguments: list[str], budget: int, seeds: int) -> None:
    curves: dict[str, list[list[float]]] = {}
    # What is compared is counted in epochs, so the searches may share the machine, one core each.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {
            (method, seed): pool.submit(search, method, seed, [*SUBSET, *arguments], budget)
            for seed in range(seeds)
            for method in ("ours", "random", "grid")
        }
        for (method, seed), search_ in running.items():
            curves.setdefault(method, []).append(search_.result())
            print(f"{method:7s} seed {seed}  best {search_.result()[-1]:.4f}", flush=True)
    marks = [m for m in (budget // 8, budget // 4, budget // 2, budget) if m]
    print(f"\nbest validation accuracy, mean of {seeds} seeds, after so many epochs in all")
    print("method   " + "".join(f"{mark:>9d}" for mark in marks))
    for method, runs in curves.items():
        means = [statistics.mean(run[mark - 1] for run in runs) for mark in marks]
        print(f"{method:9s}" + "".join(f"{100 * mean:9.2f}" for mean in means))
    wanted = statistics.mean(run[-1] for run in curves["random"])
    for method, runs in curves.items():
        needed = [next((i + 1 for i, v in enumerate(run) if v >= wanted), None) for run in runs]
        told = ", ".join("never" if n is None else str(n) for n in needed)
        print(f"{method}: epochs until random search's final mean, {100 * wanted:.2f} %: {told}")


def search(method: str, seed: int, arguments: list[str], budget: int) -> list[float]:
    """The best value so far after each epoch spent."""
    import torch

    from crayon.cli.flags import parse
    from crayon.config.names import identity, override
    from crayon.system.runfolder import RunFolder
    from crayon.tasks import jobs
    from crayon.training import worker
    from crayon.tuning.records import Plan
    from crayon.tuning.space import build, clipped
    from crayon.tuning.stopping import should_stop
    from crayon.tuning.study import Study

    torch.set_num_threads(1)
    base = parse("mnist", [*arguments, "--wandb", "off"], "mnist")
    base, space = build(base, jobs.space(base), {})
    splits = worker.load_data(base)
    plan = Plan(
        settings=identity(base),
        space=space,
        metric="val/accuracy",
        direction="max",
        objective="quality",
        sampler="random" if method == "random" else "tpe",
        early_stopping=method == "ours",
        seed=seed,
    )
    points = grid(space, seed) if method == "grid" else None
    best: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(f"sqlite:///{folder}/study.db", "s", plan)
        while len(best) < budget:
            if not study.records():
                params = clipped(base, space)
            elif points is None:
                params = study.suggest()
            else:
                params = next(points)
            config = override(base, params)
            number = study.add(params, config.epochs)
            run = RunFolder(folder, f"{number:04d}")
            run.create()
            trainer = worker.build(config, splits, run)
            state = "complete"
            while trainer.step < trainer.total_steps and len(best) < budget:
                trainer.train_epoch()
                row = run.read_rows("metrics.jsonl")[-1]
                study.report(number, row["epoch"], row["val/accuracy"], row["train_seconds"], {})
                best.append(max([row["val/accuracy"], *best[-1:]]))
                record = study.records()[number]
                others = [r for r in study.records() if r.number != number]
                if method == "ours" and should_stop(record, others, plan, row["images"] / row["epoch"]):
                    state = "pruned"
                    break
            study.finish(number, state)
    return best


def grid(space: dict, seed: int) -> Iterator[dict]:
    """All points of the grid in random order, for ever."""
    import math

    axes = []
    for name, dimension in space.items():
        n = GRID[name]
        low, high = dimension.low, dimension.high
        if dimension.log:
            values = [
                math.exp(math.log(low) + (math.log(high) - math.log(low)) * (i + 0.5) / n) for i in range(n)
            ]
        else:
            values = [low + (high - low) * (i + 0.5) / n for i in range(n)]
        axes.append([(name, round(v) if dimension.kind == "int" else v) for v in values])
    points = [dict(point) for point in itertools.product(*axes)]
    random.Random(seed).shuffle(points)
    return itertools.cycle(points)


def tune(folder: str, *arguments: str) -> dict:
    command = [sys.executable, "-m", "crayon.cli", "mnist", "tune", "--storage", folder, "--name", "s"]
    subprocess.run([*command, "--wandb", "off", *arguments], check=True, stdout=subprocess.DEVNULL)
    return json.loads((Path(folder) / "s" / "result.json").read_text())


def overhead(arguments: list[str], trials: int, repetitions: int) -> None:
    tiny = ["--data.source", "digits", "--global-batch-size", "32", "--epochs", "2", "--concurrent", "1"]
    found = []
    for i in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            options = ["--trials", str(trials), "--sampler", "random", "--no-early-stopping"]
            result = tune(folder, *tiny, *options, "--space.epochs", "2", *arguments)
        found.append(result["this_command"]["overhead_seconds"])
        print(
            f"{i + 1}: {found[-1]:.3f} s per trial beyond its epochs (n={trials}, start of the actor included)"
        )
    print(f"median {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f})")


def rate(arguments: list[str], trials: int, repetitions: int) -> None:
    ratios = []
    for i in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            options = ["--trials", str(trials), "--sampler", "random", "--no-early-stopping"]
            tune(folder, *SUBSET, *options, *arguments)
            ours = 3600 * trials / (time.perf_counter() - begun)
            params = [
                json.loads((path / "config.json").read_text())
                for path in sorted((Path(folder) / "s" / "trials").iterdir())
            ]
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            for k, p in enumerate(params):
                words = [w for name in ("lr", "beta1", "epochs") for w in (f"--{name}", str(p[name]))]
                command = [sys.executable, "-m", "crayon.cli", "mnist", *SUBSET, *words, *arguments]
                options = ["--workers", "0", "--wandb", "off", "--storage", folder, "--name", f"t{k}"]
                subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
            loop = 3600 * trials / (time.perf_counter() - begun)
        ratios.append(ours / loop)
        print(f"{i + 1}: tune {ours:.0f}, shell loop {loop:.0f} trials/h, ratio {ratios[-1]:.2f}", flush=True)
    print(
        f"ratio median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n={repetitions})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["quality", "overhead", "rate"])
    parser.add_argument("--budget", type=int, default=120, help="epochs in all, per method and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    known, rest = parser.parse_known_args()
    if known.what == "quality":
        quality(rest, known.budget, known.seeds)
    elif known.what == "overhead":
        overhead(rest, known.trials, known.repetitions)
    else:
        rate(rest, known.trials, known.repetitions)


if __name__ == "__main__":
    main()
