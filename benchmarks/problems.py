"""What searches are compared on: trials that are really trained, or a pool of trials that were trained once.

A pool is a file with the learning curves of every point of a small grid. Whatever a search suggests is answered by the
nearest point's curve, so that a search takes seconds instead of minutes and can be repeated with many seeds. Each point
was trained once, with one seed: a pool knows no luck from one training to the next.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crayon import tasks
from crayon.cli.flags import dimensions, parse
from crayon.config.names import identity, override
from crayon.config.settings import Experiment
from crayon.system.runfolder import RunFolder
from crayon.tasks import jobs
from crayon.training import worker
from crayon.tuning.effects import height
from crayon.tuning.records import Plan
from crayon.tuning.space import Dimension, build, clipped

Params = Mapping[str, Any]
Epoch = dict[str, float]
"""`value`, `seconds` of training so far, and `images` of an epoch."""


@dataclasses.dataclass
class Problem:
    """A job's own ranges around its preset, and how a point of them is trained."""

    job: str
    config: Experiment
    space: Mapping[str, Dimension]
    metric: str
    direction: str
    splits: Any = None

    @classmethod
    def of(cls, job: str, flags: list[str]) -> Problem:
        asked, rest = dimensions(flags, job)
        config = parse(job, [*rest, "--wandb", "off"], job)
        config, space = build(config, jobs.space(config), asked)
        config, (metric, direction) = tasks.kind(config).comparable(config)
        return cls(job, config, space, f"val/{metric}", direction, worker.load_data(config))

    @property
    def preset(self) -> dict[str, Any]:
        return clipped(self.config, self.space)

    def plan(self, **how: Any) -> Plan:
        """What a study of ours is one of."""
        about: dict[str, Any] = {"metric": self.metric, "direction": self.direction, "objective": "quality"}
        return Plan(settings=identity(self.config), space=self.space, **about | how)

    def trial(self, params: Params) -> tuple[int, Iterator[Epoch]]:
        """(the epochs of its schedule, what each of them reaches)."""
        config = override(self.config, dict(params))
        return config.epochs, self._train(config)

    def _train(self, config: Experiment) -> Iterator[Epoch]:
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(folder, "trial")
            run.create()
            trainer = worker.build(config, self.splits, run)
            while trainer.step < trainer.total_steps:
                trainer.train_epoch()
                row = run.read_rows("metrics.jsonl")[-1]
                images = row["images"] / row["epoch"]
                yield {"value": row[self.metric], "seconds": row["train_seconds"], "images": images}

    def grid(self) -> list[dict[str, Any]]:
        """Points around the preset, which is one of them."""
        preset = self.preset
        epochs, lr, beta1 = (preset[name] for name in ("epochs", "lr", "beta1"))
        axes = {
            "epochs": [max(1, epochs // 2), epochs, epochs * 3 // 2],
            "lr": [lr * 2.0**k for k in range(-3, 3)],
            "beta1": [0.75, beta1, 0.97] if beta1 > 0.8 else [0.0, beta1, 0.8],
        }
        fixed = {name: [value] for name, value in preset.items() if name not in axes}
        return [dict(zip(axes | fixed, p, strict=True)) for p in itertools.product(*(axes | fixed).values())]


@dataclasses.dataclass
class Pool(Problem):
    """A problem whose points were trained already."""

    trials: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Pool:
        kept = json.loads(path.read_text())
        config = parse(kept["job"], [*kept["flags"], "--wandb", "off"], kept["job"])
        config, space = build(config, jobs.space(config), {})
        about = kept["metric"], kept["direction"]
        return cls(kept["job"], config, space, *about, trials=kept["trials"])

    def trial(self, params: Params) -> tuple[int, Iterator[Epoch]]:
        def distance(trial: dict[str, Any]) -> float:
            places = ((height(d, params[n]), height(d, trial["params"][n])) for n, d in self.space.items())
            return sum((a - b) ** 2 for a, b in places)

        nearest = min(self.trials, key=distance)
        return len(nearest["curve"]), iter(nearest["curve"])

    def best(self, trials: list[dict[str, Any]]) -> float:
        values = (epoch["value"] for trial in trials for epoch in trial["curve"])
        return (max if self.direction == "max" else min)(values)


def fill(path: Path, job: str, flags: list[str]) -> None:
    """Train all points of a job's grid into the pool at `path`; one that is there is gone on with."""
    problem = Problem.of(job, flags)
    where = [i for i, flag in enumerate(flags) if flag == "--data.root"]
    public = [flag for i, flag in enumerate(flags) if not any(w <= i <= w + 1 for w in where)]
    about = {"job": job, "flags": public, "metric": problem.metric, "direction": problem.direction}
    kept = json.loads(path.read_text()) if path.exists() else {**about, "trials": []}
    known = [trial["params"] for trial in kept["trials"]]
    points = problem.grid()
    for number, point in enumerate(points):
        if point in known:
            continue
        curve = [{k: round(v, 5) for k, v in epoch.items()} for epoch in problem.trial(point)[1]]
        kept["trials"].append({"params": point, "curve": curve})
        path.write_text(json.dumps(kept))
        print(f"{number + 1}/{len(points)} {point} {curve[-1]['value']:.4f}", flush=True)
