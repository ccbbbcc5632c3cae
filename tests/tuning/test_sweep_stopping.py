"""Which trials are stopped early."""

from __future__ import annotations

import dataclasses

from sweep_records import plan
from sweep_records import trial as a_trial

from crayon.tuning.records import TrialRecord
from crayon.tuning.stopping import should_stop


def trial(number: int, epoch: int, epochs: int, values: list[float], pace: float = 1.0) -> TrialRecord:
    progress = {"epoch": epoch, "epochs": epochs, "seconds": pace * epoch}
    return a_trial(number, "running", None, curve=dict(enumerate(values, 1)), **progress)


def stops(mine: TrialRecord, others: list[TrialRecord], direction="max", objective="quality", **more) -> bool:
    return should_stop(mine, others, plan(direction=direction, objective=objective, **more))


def test_the_worst_at_a_rung_is_stopped_and_the_best_goes_on():
    others = [trial(i, 3, 9, [0.5, 0.6, 0.7 + i / 100]) for i in range(1, 6)]
    assert stops(trial(9, 3, 9, [0.5, 0.6, 0.65]), others)
    assert not stops(trial(9, 3, 9, [0.5, 0.6, 0.8]), others)
    assert stops(trial(9, 3, 9, [0.6, 0.6, 0.8]), others, direction="min")


def test_the_preset_and_a_trial_that_is_through_are_never_stopped():
    others = [trial(i, 9, 9, [0.9] * 9) for i in range(1, 6)]
    assert not stops(trial(0, 3, 9, [0.1] * 3), others)
    assert not stops(trial(7, 9, 9, [0.1] * 9), others)


def test_nothing_is_stopped_between_rungs_or_before_enough_peers():
    others = [trial(i, 9, 9, [0.9] * 9) for i in range(1, 6)]
    assert not stops(trial(7, 2, 9, [0.1] * 2), others)
    assert not stops(trial(7, 4, 9, [0.1] * 4), others)
    assert not stops(trial(7, 3, 9, [0.1] * 3), others[:1])


def test_about_the_best_third_of_a_rung_goes_on_from_three_trials_on():
    for trials, stay in ((2, 2), (3, 1), (5, 1), (6, 2), (8, 2), (9, 3)):
        scores = [(i + 1) / 10 for i in range(trials)]
        everyone = [trial(i + 1, 3, 9, [0.0, 0.0, score]) for i, score in enumerate(scores)]
        for direction, ranked in (("max", everyone[::-1]), ("min", everyone)):
            # What each had before its last epoch counts too, and is the same for all where less is better.
            ranked = [dataclasses.replace(t, curve={3: t.curve[3]}) for t in ranked]
            stopped = [stops(mine, [t for t in ranked if t is not mine], direction) for mine in ranked]
            assert stopped == [False] * stay + [True] * (trials - stay), (trials, direction)


def test_equals_at_a_rung_go_on_together():
    others = [trial(i, 3, 9, [0.9] * 3) for i in range(1, 6)]
    assert not stops(trial(9, 3, 9, [0.9] * 3), others)
    assert stops(trial(9, 3, 9, [0.9 - 1e-6] * 3), others)


def test_two_objectives_stop_what_equals_others_in_one_and_is_beaten_in_none():
    """As good and no slower dominates: two such trials are enough, and one is not."""
    same = [trial(i, 3, 9, [0.6] * 3, pace=2.0) for i in range(1, 4)]
    mine, alone = trial(9, 3, 9, [0.6] * 3, pace=2.0), trial(4, 3, 9, [0.5] * 3, pace=9.0)
    assert stops(mine, same[:2], objective="pareto")
    assert not stops(mine, [same[0], alone], objective="pareto")
    assert not stops(mine, [same[0]], objective="pareto")
    worse = [dataclasses.replace(t, curve={1: 0.7, 2: 0.7, 3: 0.7}) for t in same]
    assert not stops(mine, worse[:2], objective="pareto", direction="min")
    # Its whole schedule counts, not what it has taken so far.
    longer = [trial(i, 6, 18, [0.6] * 6, pace=1.5) for i in range(1, 4)]
    assert not stops(mine, longer, objective="pareto")


def test_trials_are_compared_at_the_same_share_of_their_own_schedules():
    """A third of 30 epochs is the tenth: a trial there is compared with what others had after a third of theirs."""
    long = trial(9, 10, 30, [0.5] * 10)
    short = [trial(i, 3, 3, [0.4, 0.9, 0.95]) for i in range(1, 4)]
    assert not stops(long, short), "at a third of their schedules the short ones had 0.4"
    assert stops(trial(9, 10, 30, [0.3] * 10), short)
    early = trial(9, 4, 30, [0.1] * 4)
    assert not stops(early, short), "the short ones were never looked at so early in their schedules"


def test_with_two_objectives_only_the_dominated_are_stopped():
    fast = [trial(i, 3, 9, [0.7] * 3, pace=1.0) for i in range(1, 4)]
    slow = [trial(i, 3, 9, [0.7] * 3, pace=5.0) for i in range(1, 4)]
    mine = trial(9, 3, 9, [0.6] * 3, pace=2.0)
    assert stops(mine, fast, objective="pareto")
    assert not stops(mine, slow, objective="pareto"), "worse, but faster"
    assert not stops(mine, [fast[0], *slow], objective="pareto"), "dominated by one only"


def test_a_metric_that_is_not_there_in_every_epoch_is_judged_at_the_next_one():
    others = [trial(i, 4, 9, []) for i in range(1, 5)]
    others = [TrialRecord(**{**vars(t), "curve": {2: 0.8, 4: 0.9}}) for t in others]
    mine = TrialRecord(**{**vars(trial(9, 4, 9, [])), "curve": {2: 0.1, 4: 0.2}})
    assert stops(mine, others)


def test_none_is_compared_before_its_warm_up_is_over_nor_with_one_whose_is_not():
    """Warm-up of the learning rate, of averaged weights, of BatchNorm's statistics; also where they are searched."""
    others = [trial(i, 9, 9, [0.9] * 9) for i in range(1, 6)]

    def stopped_after(images: float, params=(), **settings) -> list[int]:
        mine = [dataclasses.replace(trial(9, e, 9, [0.1] * e), params=dict(params)) for e in range(1, 9)]
        its = plan(settings=settings)
        return [t.epoch for t in mine if should_stop(t, others, its, images)]

    assert stopped_after(1000) == stopped_after(1000, **{"optim.warmup": 0.1}) == [1, 3, 6]
    assert stopped_after(1000, **{"optim.warmup": 0.2}) == [2, 3, 6]
    assert stopped_after(1000, **{"optim.ema_images": 5000.0}) == [5, 6]
    assert stopped_after(1000, **{"global_batch_size": 40}) == [2, 3, 6]
    assert stopped_after(1000, {"global_batch_size": 80}, **{"global_batch_size": 40}) == [4, 6]
    assert stopped_after(100, **{"global_batch_size": 40}) == []
    slow = [dataclasses.replace(t, params={"optim.warmup": 0.5}) for t in others]
    mine, its = trial(9, 3, 9, [0.1] * 3), plan(settings={"optim.warmup": 0.1})
    assert should_stop(mine, others, its) and not should_stop(mine, slow, its)


def test_by_the_median_the_worse_half_is_stopped():
    everyone = [trial(i, 3, 9, [0.1 * i] * 3) for i in range(1, 8)]
    for direction, gone in (("max", [1, 2, 3]), ("min", [5, 6, 7])):
        stopped = [
            t.number
            for t in everyone
            if stops(t, [o for o in everyone if o is not t], direction, pruner="median")
        ]
        assert stopped == gone
    assert not stops(everyone[0], everyone[5:6], pruner="median")


def test_hyperband_compares_each_bracket_by_itself_and_from_its_own_rung_on():
    """Trials 3, 6, 9 from a ninth on, 4, 7, 10 from a third on, 5, 8, 11 at two thirds only."""
    everyone = [trial(i, 6, 9, [0.1 * i] * 6) for i in range(3, 12)]

    def stopped(number: int, epoch: int) -> bool:
        mine = trial(number, epoch, 9, [0.1 * number] * epoch)
        return stops(mine, [o for o in everyone if o.number != number], pruner="hyperband")

    for epoch, compared in ((1, (0,)), (3, (0, 1)), (6, (0, 1, 2))):
        for bracket in range(3):
            assert stopped(3 + bracket, epoch) is (bracket in compared), (epoch, bracket)
            assert not stopped(9 + bracket, epoch)
