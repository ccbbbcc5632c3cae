"""What a sweep's settings do to the value at the end of the schedule, where most trials were stopped before."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from sweep_records import SPACE, drawn, plan, sweep, trial

from crayon.tuning.effects import MOST, with_effects
from crayon.tuning.records import SweepRecord, TrialRecord
from crayon.tuning.stopping import should_stop


def quality(params, epoch: int) -> float:
    """Over the space 84 % of its variation at the end is due to lr, 15 % to epochs."""
    return 0.99 - 0.02 * (math.log10(params["lr"]) + 2.4) ** 2 - 0.046 / (epoch + 1)


def searched(count: int) -> SweepRecord:
    """Random trials under early stopping, with the noise of small validation splits."""
    rng, trials = random.Random(0), []
    for number in range(count):
        params, state, curve = drawn(SPACE, rng), "complete", {}
        for epoch in range(1, params["epochs"] + 1):
            curve = {**curve, epoch: quality(params, epoch) + rng.gauss(0, 0.0005)}
            more = {"params": params, "epoch": epoch, "epochs": params["epochs"], "curve": curve}
            mine = trial(number, "running", max(curve.values()), seconds=float(epoch), **more)
            if should_stop(mine, trials[-100:], plan()):
                state = "pruned"
                break
        trials.append(replace(mine, state=state))
    return sweep(*trials)


@pytest.fixture(scope="module")
def found() -> SweepRecord:
    return with_effects(searched(500))


def test_importances_are_those_of_the_value_at_the_end_within_their_margins(found):
    assert sum(t.state == "pruned" for t in found.trials) > 350
    truth = {"lr": 0.84, "epochs": 0.15, "beta1": 0.0}
    for name, share in truth.items():
        assert abs(found.importances[name] - share) < found.margins[name] + 0.01, (name, found)
    assert list(found.importances) == ["lr", "epochs", "beta1"]
    assert sum(found.importances.values()) == pytest.approx(1)
    assert max(found.margins.values()) < 0.3
    whole = sum(t.state == "complete" for t in found.trials)
    text = (
        f"{whole} trials that ran to their end and {500 - whole} that were stopped early, at what they would"
    )
    assert found.basis.startswith(text)


def test_what_a_trial_would_have_reached_is_near_what_it_would_have_reached(found):
    cut = [t for t in found.trials if t.state == "pruned"]
    errors = [abs(found.ends[t.number] - quality(t.params, t.epochs)) for t in cut]
    so_far = [abs(t.reached - quality(t.params, t.epochs)) for t in cut]
    assert sum(errors) < 0.2 * sum(so_far)
    assert all(found.ends[t.number] == t.value for t in found.trials if t.state == "complete")


def test_a_trial_that_ended_at_the_target_counts_as_one_that_was_stopped_early(found):
    """Its schedule wasn't over. Where no end can be foretold it is left out, as those are."""
    number = next(t.number for t in found.trials if t.state == "pruned")
    reached = replace(found.trials[number], state="complete")
    trials = tuple(reached if t.number == number else t for t in found.trials)
    again = with_effects(replace(found, trials=trials))
    assert again.ends == found.ends and again.basis == found.basis
    few = replace(reached, curve={})
    assert not few.whole and replace(found, trials=(few,), ends={}).end(few) is None
    assert with_effects(replace(found, trials=(found.trials[0], few))).ends.keys() == {0}


def test_a_loss_is_foretold_by_its_ratio_and_stays_above_zero(found):
    def loss(t: TrialRecord) -> TrialRecord:
        curve = {e: 10 ** (20 * (0.99 - v)) for e, v in t.curve.items()}
        return replace(t, curve=curve, value=min(curve.values()))

    changed = replace(found, plan=plan(direction="min"), trials=tuple(map(loss, found.trials[:60])))
    ends = with_effects(changed).ends
    assert all(0 < ends[t.number] <= t.reached for t in changed.trials)


def test_too_few_or_equal_trials_say_nothing_and_many_are_sampled(found):
    few = with_effects(sweep(*(trial(i, value=0.9 + i / 100) for i in range(5))))
    assert few.importances == {} and few.ends == {i: 0.9 + i / 100 for i in range(5)}
    assert with_effects(sweep(*(trial(i) for i in range(9)))).importances == {}
    assert with_effects(sweep()).ends == {}
    # Of curves with one point each nothing is gained.
    one = [replace(t, curve={1: t.curve[1]}) for t in found.trials if t.state == "pruned"]
    alone = with_effects(sweep(*(trial(1000 + i, value=i) for i in range(6)), *one))
    assert set(alone.ends) == {1000 + i for i in range(6)}
    assert alone.basis.endswith(f"without {len(one)} that were stopped early")
    many = sweep(*(replace(t, number=i) for i, t in enumerate([*found.trials] * 3)))
    assert with_effects(many).basis.startswith(f"a sample of {MOST:,} of ")


def test_only_trials_that_ran_to_their_end_are_on_the_front():
    early = trial(1, "pruned", 0.99, seconds=1.0, epoch=1)
    record = sweep(trial(0, value=0.98), early, trial(2, value=0.97, seconds=20.0), objective="pareto")
    assert [t.number for t in record.front] == [2, 0]
