"""What a sweep's study begins with: the preset, what the command asks for, and what is known from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from crayon.config.settings import Experiment
from crayon.data.types import DataInfo
from crayon.errors import BadInput
from crayon.report.words import is_share
from crayon.tuning import requirements
from crayon.tuning.settings import SweepConfig
from crayon.tuning.space import Dimension, clipped, points
from crayon.tuning.study import Study


def begin(
    study: Study,
    config: Experiment,
    sweep: SweepConfig,
    space: Mapping[str, Dimension],
    info: DataInfo,
    place: str,
) -> list[str]:
    """Enter the trials that are run first, unless they are there, and take in what others have entered.

    info: of the images. place: where the trials lie. Returns what a person should know. Raises BadInput.
    """
    if sweep.target is not None and sweep.target > 1 and is_share(study.plan.metric):
        best = f"{sweep.target / 100:g}" if sweep.target <= 100 else "0.98"
        raise BadInput(f"--target {sweep.target:g}: {study.plan.metric} is at most 1; write it as in {best}.")
    preset, asked = clipped(config, space), points(sweep.try_, config, space)
    study.require(requirements.Requirements(sweep.require, config, info))
    for point in [preset, *asked]:
        if why := study.required.objection(point):
            which = "The preset, which is the first trial," if point == preset else "What --try asks for"
            raise BadInput(f"{which} can't be trained: {why}; change the settings or the requirement.")
    # What others may enqueue comes later: trial 0 is the preset.
    if sweep.population:  # which enters its members itself
        return []
    for point in [*([] if study.records() else [preset]), *asked]:
        if point not in [dict(trial.params) for trial in study.records()]:
            study.add(point, int(point.get("epochs") or config.epochs), "waiting")
    told = []
    if source := sweep.from_:
        source = source if "://" in source else str(Path(source).expanduser().absolute())
        if source == place:
            raise BadInput(
                f"--from {sweep.from_} is this sweep itself, which goes on with its trials anyway."
            )
        told.append(study.begin_with(source))
    if others := study.beside(place):
        where = " and ".join(others)
        told.append(
            f"This sweep has trials in {where} too: their models stay there, and those that wait begin anew."
        )
    return [*told, *study.welcome()]
