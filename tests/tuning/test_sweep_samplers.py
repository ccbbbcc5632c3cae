"""Samplers by name: each goes on as if nothing had happened, or is refused with the reason."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from sweep_records import SPACE, plan, trial
from test_sweep_outside import theirs
from test_sweep_study import CONFIG

from crayon.config.names import override
from crayon.data.types import DataInfo
from crayon.errors import BadInput
from crayon.tuning import requirements, samplers
from crayon.tuning.requirements import Requirements, parse
from crayon.tuning.space import Dimension, clipped
from crayon.tuning.study import Study

LISTS = {
    "epochs": Dimension(name="epochs", kind="int", low=4, high=6),
    "lr": Dimension(name="lr", kind="choice", choices=(1e-3, 4e-3, 1e-2)),
}


def quality(params) -> float:
    return 0.99 - 0.02 * (math.log10(params["lr"]) + 2.4) ** 2 - 0.001 * (params["epochs"] - 6) ** 2


def searched(count: int, known=(), **changes) -> list:
    """`count` trials, the first of them `known`; a third are stopped early, one failed."""
    asked, records = plan(**changes), list(known)
    while len(records) < count:
        number = len(records)
        params = samplers.suggest(asked, records, number)
        if not params:
            break
        state = "failed" if number == 4 else "pruned" if number % 3 == 2 else "complete"
        value = None if state == "failed" else quality(params)
        more = {"epochs": params["epochs"], "epoch": 2, "seconds": float(params["epochs"])}
        records.append(trial(number, state, value, params=params, curve={2: value} if value else {}, **more))
    return records


@pytest.mark.parametrize("objective", ["quality", "pareto"])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2", "random"])
def test_a_sweep_that_goes_on_has_the_suggestions_of_one_left_in_peace(sampler, objective):
    if sampler == "cmaes" and objective == "pareto":
        return
    changes = {"sampler": sampler, "objective": objective}
    if sampler == "gp" and objective == "pareto":
        return  # it thinks long
    count = 8 if sampler == "gp" else 14
    whole = searched(count, **changes)
    assert searched(count, whole[: count - 2], **changes) == whole
    assert (
        len({tuple(r.params.values()) for r in whole}) == count or sampler == "nsga2"
    )  # children equal parents
    assert searched(3, seed=1, **changes)[2].params != whole[2].params


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_populations_evolve(sampler):
    """Later trials are better than those of random draws, which have no such state to lose."""
    records = [r for r in searched(45, sampler=sampler) if r.value is not None]
    first, last = (sum(r.value for r in part) / 15 for part in (records[:15], records[-15:]))
    assert last > first + 0.004


def test_a_grid_is_gone_through_once():
    records = searched(20, sampler="grid", space=LISTS)
    assert len(records) == 9 == len({tuple(r.params.values()) for r in records})
    assert searched(20, records[:4], sampler="grid", space=LISTS) == records
    assert searched(20, sampler="grid", space=LISTS, seed=1) != records


@pytest.mark.parametrize(
    ("sampler", "objective", "space", "words"),
    [
        ("cmaes", "pareto", SPACE, "one objective"),
        ("cmaes", "quality", LISTS, "lr is a choice"),
        ("cmaes", "quality", {"lr": SPACE["lr"]}, "one dimension"),
        ("grid", "quality", SPACE, r"lr 0.0005..0.02:log is a range; write its points as --space.lr a,b,c"),
    ],
)
def test_what_a_sampler_cant_do_is_refused(sampler, objective, space, words):
    with pytest.raises(BadInput, match=words):
        samplers.check(sampler, objective, space)


def test_what_trials_must_keep_to_is_drawn_around(study):
    """The networks for these images are built and counted; what doesn't keep to it is drawn again, or left out."""
    info = DataInfo(size=16, channels=1, classes=tuple("0123456789"), train_size=100)
    none = Requirements(["parameters<1"], CONFIG, info).objection
    preset = clipped(CONFIG, study.plan.space)
    count = int(none(preset | {"model.width": 16}).split()[2].replace(",", ""))
    study.require(Requirements([f"parameters <= {count:_}"], CONFIG, info))
    objection = study.required.objection
    drawn = [samplers.suggest(study.plan, [], n)["model.width"] for n in range(12)]
    kept = [samplers.suggest(study.plan, [], n, objection=objection)["model.width"] for n in range(12)]
    assert 32 in drawn and set(kept) == {8, 16}
    assert all(a == b for a, b in zip(drawn, kept, strict=True) if a != 32)
    theirs(study).enqueue_trial({"model.width": 32})
    (told,) = study.welcome()
    assert "parameters, against --require parameters <= " in told
    with pytest.raises(
        BadInput, match=r"Of 100 draws for trial 3 none can be trained: .* --require parameters<1"
    ):
        samplers.suggest(study.plan, [], 3, objection=none)
    lists = plan(space=LISTS, sampler="grid")
    assert (
        samplers.suggest(lists, [], 0, objection=lambda params: "" if params["lr"] > 4e-3 else "no")["lr"]
        == 1e-2
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parameters", "no comparison"),
        ("parameters<=many", "no comparison"),
        ("parameters<=1.2.3", "no comparison"),
        ("memory<=1e999", "no comparison"),
        (
            "paramters<=3",
            "'paramters' isn't known before training; there are parameters, memory, ms_per_image",
        ),
        ("memory<=2Mb", "'Mb' is no unit of memory; write kB, MB, GB, KiB, MiB, GiB"),
        ("parameters<=3k", "'k' is no unit of parameters; leave it out"),
    ],
)
def test_requirements_of_nothing_are_refused(text, words):
    with pytest.raises(BadInput, match=words):
        parse(text)


def test_a_requirement_may_be_written_as_flags_are():
    assert parse("ms-per-image <= 1e-1 ms").name == "ms_per_image"


def test_what_was_measured_before_a_trial_is_kept_and_the_search_learns_from_it(study, monkeypatch):
    """A time that is measured again is another one: a command that goes on decides nothing anew."""
    info = DataInfo(size=16, channels=1, classes=tuple("0123456789"), train_size=100)
    texts = ["ms_per_image <= 9ms", "memory<20MB"]
    times = itertools.cycle([3.0, 30.0])
    monkeypatch.setitem(requirements.FIGURES, "ms_per_image", lambda task, config: next(times))
    study.require(Requirements(texts, CONFIG, info))
    assert not study.required.objection(study.record(0).params)
    first = study.suggest()
    (_, why), *_ = refused = study.refused
    assert "30 ms per image" in why and first not in [params for params, _ in refused]
    number = study.add(first, 8)
    assert study.record(number).figures["ms_per_image"] == 3.0 and not study.refused
    again = Study(study.url, "s", study.plan)
    again.require(Requirements(texts, CONFIG, info))
    monkeypatch.setitem(requirements.FIGURES, "ms_per_image", lambda task, config: 1 / 0)
    assert again.records() == study.records() and not again.required.objection(first)
    assert [
        (p["params"], again.required.objection(p["params"])) for p in again.record(number).refused
    ] == refused
    assert [r.params for r in again._evidence() if r.number < 0] == [params for params, _ in refused]
    lists = plan(space=LISTS, sampler="grid")
    left_out = samplers.refused(samplers.suggest(lists, [], 0))
    assert samplers.suggest(lists, [left_out], 0) == samplers.suggest(
        lists, [dataclasses.replace(left_out, number=0)], 1
    )


def test_draws_keep_away_from_what_was_refused():
    """Of a tight requirement too, for which the first draws all are in vain."""
    asked = []

    def objection(params):
        asked.append(params)
        return "" if params["lr"] < 6e-4 else "it is too large"

    known = [trial(n, value=0.9, params={"epochs": 9, "lr": 5.5e-4, "beta1": 0.9}) for n in range(8)]
    samplers.suggest(plan(space=SPACE), known, 8, objection=objection)
    assert len(asked) < 10, "with every draw from the whole range 95 % would be"


def test_figures_of_networks_follow_from_their_settings():
    info = DataInfo(size=16, channels=1, classes=tuple("0123456789"), train_size=100)

    def found(**changes):
        texts = ["ms_per_image>=0", "memory>=0", "parameters>=0"]
        return Requirements(texts, override(CONFIG, {"precision": "fp32", **changes}), info).figures({})

    few, more, most = (found(global_batch_size=n)["memory"] for n in (32, 64, 128))
    assert most - more == pytest.approx(2 * (more - few)), "in a line with the batch"
    assert found(global_batch_size=64, workers=2)["memory"] == few
    config = override(CONFIG, {"precision": "fp32", "global_batch_size": 32})
    assert Requirements(["memory>=0"], config, info).figures({}) == {"memory": few}
    wide = found(**{"model.width": 32})
    assert wide["memory"] > found()["memory"] and wide["ms_per_image"] > 0
    weights = 4 * wide["parameters"]
    averaged = found(**{"optim.ema_images": 100.0})["memory"] - found(**{"optim.ema_images": 0.0})["memory"]
    assert averaged == pytest.approx(4 * found()["parameters"], rel=0.1) and wide["memory"] > 4 * weights
