#!/usr/bin/env python
"""What a sweep is worth, and what it costs.

    python benchmarks/sweeps.py search --pool FILE            # against Ray Tune, Optuna and chance, on trained trials
    python benchmarks/sweeps.py pool --pool FILE --job mnist --data.root DATA      # trains such trials
    python benchmarks/sweeps.py quality --data.root DATA      # the same comparison, every trial really trained
    python benchmarks/sweeps.py many --trials 1000            # CPU time and memory per trial, and the page
    python benchmarks/sweeps.py overhead                      # seconds per trial beyond its training
    python benchmarks/sweeps.py rate --data.root DATA         # trials per hour against a shell loop

search, quality: our search (TPE and early stopping), Ray Tune's OptunaSearch and ASHAScheduler, Optuna's TPE and
Hyperband, and random search (--methods; a grid, too, and for quality a population, pbt), each with the same total of
epochs and several seeds. The trials of a search run one at a time, ours through the same study and stopping rule as
`crayon JOB tune`. All know the same ranges, and all begin with the preset. What a pool is: problems.py.
rate: the same trials (random parameters, no early stopping) by `tune` and by one process per trial, in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SUBSET = ["--data.size", "6000", "--data.val-fraction", "0.33", "--epochs", "6", "--global-batch-size", "64"]
"""Enough held-out images, 1,980, to tell settings apart."""


def quality(job: str, flags: list[str], methods: Sequence[str], budget: int, seeds: int) -> None:
    """Searches whose trials are really trained."""
    # What is compared is counted in epochs, so the searches may share the machine, one core each.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {
            (method, seed): pool.submit(live, method, job, flags, seed, budget)
            for seed in range(seeds)
            for method in methods
        }
        curves: dict[str, list[list[float]]] = {}
        for (method, seed), search_ in running.items():
            curves.setdefault(method, []).append(search_.result())
            print(f"{method:7s} seed {seed}  best {search_.result()[-1]:.4f}", flush=True)
    direction = "max" if job != "gan" else "min"
    told(curves, direction, budget, {})


def live(method: str, job: str, flags: list[str], seed: int, budget: int) -> list[float]:
    import torch

    from problems import Problem
    from searchers import search

    torch.set_num_threads(1)
    return search(method, Problem.of(job, flags), seed, budget)


def search(path: Path, methods: Sequence[str], budget: int, seeds: int) -> None:
    """Searches whose trials are looked up in a pool."""
    from problems import Pool
    from searchers import search

    pool = Pool.read(path)
    preset, best = pool.best([t for t in pool.trials if t["params"] == pool.preset]), pool.best(pool.trials)
    epochs = sum(len(t["curve"]) for t in pool.trials)
    print(
        f"{pool.job}: {len(pool.trials)} points, {epochs} epochs; {pool.metric} of the preset {preset:.4f}, of the"
    )
    print(f"best {best:.4f}; every search {seeds} times with {budget} epochs")
    sign = 1 if pool.direction == "max" else -1
    marks = {"the pool's best": best}
    if pool.metric.endswith("accuracy"):
        marks = {
            f"the preset and {100 * more:g} points": preset + more for more in (0.0025, 0.005, 0.01)
        } | marks
    else:
        marks = {f"{100 * less:g} % under the preset": preset * (1 - less) for less in (0.05, 0.1)} | marks
    marks = {name: value for name, value in marks.items() if sign * value <= sign * best + 1e-9}
    curves = {method: [search(method, pool, seed, budget) for seed in range(seeds)] for method in methods}
    told(curves, pool.direction, budget, marks)


def told(
    curves: Mapping[str, list[list[float]]], direction: str, budget: int, marks: Mapping[str, float]
) -> None:
    """Quartiles of the best value so far, and of the epochs until it is as good as each of `marks`."""
    sign = 1 if direction == "max" else -1
    spent = sorted({m for m in (budget // 8, budget // 4, budget // 2, budget) if m})
    print("\nbest validation value, median (quartiles), after so many epochs in all")
    print("method   " + "".join(f" {mark:>28d}" for mark in spent))
    for method, runs in curves.items():
        cells = [quartiles([run[mark - 1] for run in runs], ".4f") for mark in spent]
        print(f"{method:9s}" + "".join(f" {cell:>28s}" for cell in cells))
    if not marks:
        last = list(curves)[-1]
        marks = {f"the final median of {last}": statistics.median(run[-1] for run in curves[last])}
    for name, value in marks.items():
        print(f"\nepochs until {name}, {value:.4f}: median (quartiles), and the share that get there")
        for method, runs in curves.items():
            needed = [
                next((i + 1.0 for i, v in enumerate(run) if sign * v >= sign * value - 1e-9), math.inf)
                for run in runs
            ]
            share = sum(map(math.isfinite, needed)) / len(needed)
            print(f"{method:9s}{quartiles(needed, '.0f'):>27s}   {100 * share:.0f} %")


def quartiles(values: Sequence[float], form: str) -> str:
    """Of what is observed, nothing between: some are infinite."""
    ordered = sorted(values)
    low, middle, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


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
    parser.add_argument("what", choices=["search", "pool", "quality", "many", "overhead", "rate"])
    parser.add_argument("--budget", type=int, default=120, help="epochs in all, per method and seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--job", default="mnist")
    parser.add_argument("--pool", type=Path, help="file of trained trials")
    parser.add_argument("--methods", nargs="+", default=["ours", "ray", "optuna", "random"])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    known, rest = parser.parse_known_args()
    if known.what in ("search", "pool") and not known.pool:
        parser.error("--pool FILE is missing")
    if known.what == "search":
        search(known.pool, known.methods, known.budget, known.seeds)
    elif known.what == "pool":
        from problems import fill

        fill(known.pool, known.job, rest)
    elif known.what == "quality":
        subset = SUBSET if known.job == "mnist" else []
        quality(known.job, [*subset, *rest], known.methods, known.budget, known.seeds)
    elif known.what == "many":
        from many import many

        many(known.trials, rest)
    elif known.what == "overhead":
        overhead(rest, known.trials, known.repetitions)
    else:
        rate(rest, known.trials, known.repetitions)


if __name__ == "__main__":
    main()
