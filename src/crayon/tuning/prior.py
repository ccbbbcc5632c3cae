"""What a sweep begins with: trials of another sweep, of an Optuna study, or a run. They lead the search, and are no
trials of its own: they have no number, are never chosen, and count for nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from crayon.errors import BadInput
from crayon.system.objectstore import SCHEMES
from crayon.system.runfolder import SWEEP, RunFolder
from crayon.system.secrets import shown
from crayon.tuning.database import errors, open_storage
from crayon.tuning.outside import CONFIRMS
from crayon.tuning.records import Plan, TrialRecord

MOST = 256
"""Trials that are taken from one source, evenly from the best to the worst: a study keeps no longer texts."""
SHARE = 4
"""Of trials with other data or other settings than the searched, every so-manyth counts."""


def read(source: str, plan: Plan) -> list[dict[str, Any]]:
    """The trials of `source` that are points of the plan's space, the best first, as plain values.

    source: the folder of a sweep or run, or an Optuna URL with # and the study's name. Raises BadInput where nothing
    is there, or what can't be compared: of another job, another metric or the other direction.
    """
    if source.partition("://")[0] in SCHEMES:
        raise BadInput(
            f"--from {source} is in an object store; copy its sweep.json and study.db into a folder here."
        )
    try:
        found = _of_study(source, "", plan, None) if "://" in source else _of_folder(source, plan)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise BadInput(f"--from {shown(source)} holds what crayon can't have written ({kind}).") from None
    if not found:
        raise BadInput(f"--from {shown(source)} has no finished trial within the ranges of this sweep.")
    found.sort(key=lambda trial: trial["value"], reverse=plan.direction == "max")
    return _thinned(found, MOST)


def evidence(kept: Sequence[Mapping[str, Any]], own: Sequence[TrialRecord], plan: Plan) -> list[TrialRecord]:
    """The trials of `read` beside the sweep's `own`, for a sampler.

    Where data or settings differ, values can't be compared: a trial then has the value that stands at its place, from
    the best to the worst, among the sweep's own; and only one in `SHARE` of them counts.
    """
    values = [r.reached for r in own if r.state in ("complete", "pruned") and r.value is not None]
    same = [trial for trial in kept if trial["same"]]
    others = [trial for trial in kept if not trial["same"]]
    others = _thinned(others, math.ceil(len(others) / SHARE)) if values else []
    places = np.linspace(1, 0, len(others)) if plan.direction == "max" else np.linspace(0, 1, len(others))
    moved = np.quantile(values, places) if others else ()
    found = [(trial, float(trial["value"])) for trial in same]
    found += [(trial, float(value)) for trial, value in zip(others, moved, strict=True)]
    return [
        TrialRecord(
            number=-1,
            state="complete",
            params=trial["params"],
            value=value,
            seconds=trial["seconds"],
            outside=True,
        )
        for trial, value in found
    ]


def _thinned(trials: list[Any], most: int) -> list[Any]:
    """At most so many, evenly from the first to the last."""
    if len(trials) <= most:
        return trials
    return [trials[round(i)] for i in np.linspace(0, len(trials) - 1, most)]


def _of_folder(source: str, plan: Plan) -> list[dict[str, Any]]:
    folder = RunFolder.at(Path(source).expanduser())
    known = folder.read_json(SWEEP)
    if known is not None:
        if known.get("metric") != plan.metric:
            raise BadInput(f"--from {source} compared {known.get('metric')}, and this sweep {plan.metric}.")
        url = known.get("study") or f"sqlite:///{folder.path / 'study.db'}"
        return _of_study(url, folder.name, plan, known["settings"] | {"job": known["job"]})
    config = folder.read_json("config.json")
    if config is None:
        raise BadInput(
            f"--from {source} is neither a sweep's folder nor a run's, nor the URL of an Optuna study."
        )
    rows = folder.read_rows("metrics.jsonl")
    value = plan.best(row[plan.metric] for row in rows if isinstance(row.get(plan.metric), float))
    seconds = max((row.get("train_seconds", 0.0) for row in rows), default=0.0)
    point = _point(config, config, value, seconds, plan, source)
    return [point] if point else []


def _of_study(url: str, name: str, plan: Plan, settings: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """settings: of all its trials, but for those searched; None where nobody knows."""
    address, _, asked = url.partition("#")
    name = name or asked
    path = urlsplit(address).path[1:]
    if address.startswith("sqlite:") and not os.path.exists(path):  # or it would be made
        raise BadInput(f"--from {shown(address)}: there is no file {path}.")
    with errors(address):
        storage = open_storage(address)
        names = optuna.get_all_study_names(storage)
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            text = f"has no study {name!r}" if name else "has several studies, or none"
            raise BadInput(
                f"--from {shown(address)} {text}; write URL#NAME, of {', '.join(names) or 'none'}."
            )
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        trials = [trial for trial in trials if CONFIRMS not in trial.user_attrs]
    wanted = StudyDirection.MAXIMIZE if plan.direction == "max" else StudyDirection.MINIMIZE
    if study.directions[0] != wanted:
        raise BadInput(
            f"--from {shown(url)} sought the other end than {plan.metric}'s, which is {plan.direction}."
        )
    points = []
    for trial in trials:
        value, seconds = _figures(trial, plan)
        flat = None if settings is None else {**settings, **trial.params}
        points.append(_point(flat or trial.params, flat, value, seconds, plan, shown(url)))
    return [point for point in points if point]


def _figures(trial: FrozenTrial, plan: Plan) -> tuple[float | None, float]:
    """(value, seconds) of a trial, the former None where it has none."""
    progress = trial.user_attrs.get("progress", {})
    seconds = float(progress.get("seconds", 0.0)) if isinstance(progress, dict) else 0.0
    values = trial.values or []
    return plan.best(trial.intermediate_values.values() or values[:1]), values[1] if len(
        values
    ) > 1 else seconds


def _point(
    params: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    value: float | None,
    seconds: float,
    plan: Plan,
    source: str,
) -> dict[str, Any] | None:
    """A trial as the study keeps it; None where it is no point of the space, or has no value."""
    job = plan.settings.get("job")
    if settings is not None and settings.get("job") != job:
        raise BadInput(f"--from {source} is of the job {settings.get('job')}, and this sweep of {job}.")
    own = {name: dimension.taken(params.get(name)) for name, dimension in plan.space.items()}
    if value is None or not math.isfinite(value) or None in own.values():
        return None
    # A folder's images may be others under the same settings.
    same = settings is not None and settings.get("data.source") != "folder"
    for name, wanted in plan.settings.items():
        if name not in {*plan.space, "seed", "preset"}:
            same = same and settings is not None and settings.get(name, wanted) == wanted
    return {"params": own, "value": value, "seconds": seconds, "same": same}
