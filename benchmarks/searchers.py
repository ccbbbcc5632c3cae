"""Searches by one interface, each at its library's defaults: `ask` for the next trial's parameters, `tell` what it has
reached after an epoch and learn whether it ends there, `end` it. All begin with the preset, run one trial at a time and
know the same ranges."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna

from crayon.tuning.samplers import distribution
from crayon.tuning.stopping import should_stop
from problems import Epoch, Params, Problem


class Ours:
    """The study, the suggestions and the stopping rule of `crayon JOB tune`, as its driver uses them."""

    early_stopping = True
    sampler = "tpe"

    def __init__(self, problem: Problem, seed: int, folder: Path):
        from crayon.tuning.study import Study

        self.problem = problem
        self.plan = problem.plan(sampler=self.sampler, early_stopping=self.early_stopping, seed=seed)
        self.study = Study(f"sqlite:///{folder}/study.db", "s", self.plan)

    def ask(self) -> Params:
        self.params = self.study.suggest() if self.study.records() else self.problem.preset
        return self.params

    def begin(self, epochs: int) -> None:
        self.number = self.study.add(self.params, epochs)

    def tell(self, epoch: int, reached: Epoch) -> bool:
        self.study.report(self.number, epoch, reached["value"], reached["seconds"], {})
        mine, records = self.study.record(self.number), self.study.records()
        others = [r for r in records if r.number != self.number]
        return self.early_stopping and should_stop(mine, others, self.plan, reached["images"])

    def end(self, stopped: bool) -> None:
        self.study.finish(self.number, "pruned" if stopped else "complete")


class Random(Ours):
    """The same study with random parameters, and every trial runs to its end."""

    early_stopping = False
    sampler = "random"


POINTS = {"lr": 5, "beta1": 3, "epochs": 2}
"""Of the grid, for each dimension."""


class Grid(Random):
    """The points of a grid in an order that the seed decides, for ever."""

    def __init__(self, problem: Problem, seed: int, folder: Path):
        super().__init__(problem, seed, folder)
        axes = []
        for name, dimension in problem.space.items():
            (low, high), n = dimension.ends, POINTS[name]
            rise, fall = (math.log, math.exp) if dimension.log else (float, float)
            values = [fall(rise(low) + (rise(high) - rise(low)) * (i + 0.5) / n) for i in range(n)]
            axes.append([(name, round(v) if dimension.kind == "int" else v) for v in values])
        points = [dict(point) for point in itertools.product(*axes)]
        random.Random(seed).shuffle(points)
        self.points = itertools.cycle(points)

    def ask(self) -> Params:
        self.params = next(self.points) if self.study.records() else self.problem.preset
        return self.params


class Optuna:
    """Optuna by itself: TPE and HyperbandPruner, whose resource is the epoch."""

    def __init__(self, problem: Problem, seed: int, folder: Path):
        self.space = {name: distribution(d) for name, d in problem.space.items()}
        pruner = optuna.pruners.HyperbandPruner(max_resource=most_epochs(problem))
        direction = "maximize" if problem.direction == "max" else "minimize"
        # Hyperband takes a trial's bracket from the study's name.
        self.study = optuna.create_study(
            study_name=f"study {seed}",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruner,
            direction=direction,
        )
        self.study.enqueue_trial(problem.preset)

    def ask(self) -> Params:
        self.trial = self.study.ask(self.space)
        return self.trial.params

    def begin(self, epochs: int) -> None:
        self.value = math.nan

    def tell(self, epoch: int, reached: Epoch) -> bool:
        self.value = reached["value"]
        self.trial.report(self.value, epoch)
        return self.trial.should_prune()

    def end(self, stopped: bool) -> None:
        if stopped:
            self.study.tell(self.trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(self.trial, self.value)


class RayTune:
    """Ray Tune's OptunaSearch and ASHAScheduler, called as Tune's controller calls them, without Ray's processes."""

    def __init__(self, problem: Problem, seed: int, folder: Path):
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            about = {"metric": "value", "mode": problem.direction}
            space = {name: distribution(d) for name, d in problem.space.items()}
            self.search = OptunaSearch(space, points_to_evaluate=[problem.preset], seed=seed, **about)
        self.scheduler = ASHAScheduler(max_t=most_epochs(problem), **about)
        self.trials = itertools.count()

    def ask(self) -> Params:
        self.trial = SimpleNamespace(trial_id=f"{next(self.trials):05d}")
        return self.search.suggest(self.trial.trial_id) or {}

    def begin(self, epochs: int) -> None:
        self.epochs = epochs
        self.scheduler.on_trial_add(None, self.trial)  # type: ignore[arg-type]

    def tell(self, epoch: int, reached: Epoch) -> bool:
        self.result = {"value": reached["value"], "training_iteration": epoch}
        if epoch == self.epochs:
            self.scheduler.on_trial_complete(None, self.trial, self.result)  # type: ignore[arg-type]
            return False
        decision = self.scheduler.on_trial_result(None, self.trial, self.result)  # type: ignore[arg-type]
        self.search.on_trial_result(self.trial.trial_id, self.result)
        return decision == "STOP"

    def end(self, stopped: bool) -> None:
        self.search.on_trial_complete(self.trial.trial_id, self.result)


def most_epochs(problem: Problem) -> int:
    return int(problem.space["epochs"].ends[1]) if "epochs" in problem.space else problem.config.epochs


SEARCHERS: dict[str, Callable[..., Any]] = {
    "ours": Ours,
    "ray": RayTune,
    "optuna": Optuna,
    "random": Random,
    "grid": Grid,
}


def pbt(problem: Problem, seed: int, budget: int, folder: Path) -> Iterator[float]:
    """The value after each epoch of a population that shares the budget, by the rule of `crayon JOB tune --objective
    pbt`, over what of the ranges may change while a model trains."""
    from crayon.config.changes import may_change
    from crayon.config.names import override
    from crayon.system.runfolder import RunFolder
    from crayon.training import checkpoint, worker
    from crayon.tuning.population import due, sizes
    from crayon.tuning.settings import SweepConfig
    from crayon.tuning.study import Study

    config, space = (
        problem.config,
        {n: problem.space[n] for n in may_change(problem.config) if n in problem.space},
    )
    members, length = sizes(config, SweepConfig(population=budget // config.epochs))
    how: dict[str, Any] = {"sampler": "random", "early_stopping": False, "objective": "pbt"}
    sizes_ = {"population": members, "round_epochs": length}
    plan = dataclasses.replace(problem.plan(seed=seed, **how, **sizes_), space=space)
    study = Study(f"sqlite:///{folder}/study.db", "s", plan)
    preset = {name: value for name, value in problem.preset.items() if name in space}
    while round_ := [*due(study.records(), plan, [preset], config.epochs)]:
        for params, turn in round_:
            number = study.add(params, config.epochs, turn=turn)
            run = RunFolder(str(folder), str(number))
            run.create()
            if turn.parent is not None:
                checkpoint.fork(RunFolder(str(folder), str(turn.parent)), run)
            trainer = worker.build(override(config, dict(turn.settings)), problem.splits, run)
            trainer.restore()
            while trainer.epoch < turn.until:
                trainer.train_epoch()
                row = run.read_rows("metrics.jsonl")[-1]
                study.report(number, trainer.epoch, row[problem.metric], row["train_seconds"], {})
                yield row[problem.metric]
            trainer.save()
            trainer.saver.wait()
            study.finish(number, "complete")
            print(f"pbt seed {seed}: {turn} {study.record(number).value:.4f}", file=sys.stderr, flush=True)


def search(method: str, problem: Problem, seed: int, budget: int) -> list[float]:
    """The best value so far after each epoch spent."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    better = max if problem.direction == "max" else min
    best: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if method == "pbt":
            return [*itertools.accumulate(pbt(problem, seed, budget, Path(folder)), better)]
        searcher = SEARCHERS[method](problem, seed, Path(folder))
        while len(best) < budget:
            epochs, curve = problem.trial(searcher.ask())
            searcher.begin(epochs)
            stopped = False
            for epoch, reached in enumerate(curve, 1):
                best.append(better([reached["value"], *best[-1:]]))
                stopped = searcher.tell(epoch, reached) and epoch < epochs
                if stopped or len(best) == budget:
                    break
            searcher.end(stopped)
    return best
