"""A sweep's last step: what is the best by other seeds, too."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import scipy.stats
from helpers import crayon, kill_with_family, rows
from sweep_records import record as any_record
from sweep_records import sweep, trial
from test_launch import start
from test_sweep import sweep as command
from test_sweep import wait_for
from test_sweep_outside import state
from test_sweep_page import written
from test_sweep_study import CONFIG, SPACE, plan
from wandb_files import of_kind, records

from crayon.errors import BadInput
from crayon.tuning import driver, prior, wandb, winner
from crayon.tuning.confirm import Confirming
from crayon.tuning.settings import SweepConfig
from crayon.tuning.study import Study
from crayon.tuning.words import confirming_text, verdict_text


def found(*values: float, direction: str = "max"):
    """A sweep of trials with these values, the first of them the preset's."""
    params = ({"epochs": 9, "lr": 0.001 * (i + 1), "beta1": 0.9} for i in range(len(values)))
    trials = (trial(i, value=v, params=p) for i, (v, p) in enumerate(zip(values, params, strict=True)))
    return sweep(*trials, direction=direction)


def confirmed(record, values: dict[int, list[float | None]], seeds: int = 5):
    """With what trials reached with seeds from 1 on; None = the run has failed."""
    runs = []
    for number, those in values.items():
        for seed, value in enumerate(those, 1):
            params, ended = {**record.trials[number].params, "seed": seed}, value is not None
            made = trial(50 + len(runs), "complete" if ended else "failed", value, params=params)
            runs.append(replace(made, confirms=number))
    verdict = winner.verdict(record.trials, runs, record.plan, seeds)
    return replace(record, confirming=tuple(runs), verdict=verdict)


PRESET = [0.950, 0.953, 0.948, 0.951, 0.949]
MUCH = [0.960, 0.962, 0.959, 0.961, 0.960]
LUCK = [0.951, 0.950, 0.952, 0.949, 0.951]


def test_a_trial_that_is_told_apart_wins_though_another_had_the_better_value():
    found_ = confirmed(found(0.95, 0.97, 0.965), {0: PRESET, 1: LUCK, 2: MUCH})
    lucky, better = found_.verdict.comparisons
    assert (lucky.trial, better.trial) == (1, 2) and not lucky.better and better.better
    assert found_.verdict.winner == found_.best.number == 2 and found_.verdict.missing == 0
    # As scipy has it, of each of two comparisons.
    told = scipy.stats.ttest_rel(MUCH, PRESET).confidence_interval(1 - 0.05 / 2)
    ends = better.difference - better.margin, better.difference + better.margin
    np.testing.assert_allclose(ends, (told.low, told.high), rtol=1e-9)
    text = f"trial 2 is better than the preset, by +1.02 ± {100 * better.margin:.2f} points"
    assert verdict_text(found_) == f"{text} with 5 other seeds."


def test_without_such_a_trial_the_preset_is_kept():
    kept = confirmed(found(0.95, 0.97), {0: PRESET, 1: LUCK})
    assert kept.best.number == kept.verdict.winner == 0
    assert (
        verdict_text(kept)
        == "no trial is told apart from the preset with 5 other seeds, so the preset is kept."
    )
    worse = confirmed(found(0.95, 0.97), {0: MUCH, 1: PRESET})
    assert worse.verdict.winner == 0 and not worse.verdict.comparisons[0].better


def test_the_lower_value_is_the_better_one_of_a_loss():
    assert confirmed(found(0.95, 0.94, direction="min"), {0: MUCH, 1: PRESET}).best.number == 1
    assert confirmed(found(0.95, 0.94, direction="min"), {0: PRESET, 1: MUCH}).best.number == 0


def test_only_pairs_count_and_who_fails_with_a_seed_doesnt_win():
    half = confirmed(found(0.95, 0.97), {0: PRESET[:3], 1: MUCH})
    (one,) = half.verdict.comparisons
    assert one.seeds == 3 and half.verdict.missing == 2
    np.testing.assert_allclose(one.difference, np.mean(MUCH[:3]) - np.mean(PRESET[:3]))
    assert "Of the runs 2 are still to come." in verdict_text(half)
    none = confirmed(found(0.95, 0.97), {0: PRESET[:1], 1: MUCH[:1]})
    assert none.best.number == 0 and none.verdict.comparisons[0].margin is None
    assert verdict_text(none).startswith("no trial is told apart from the preset so far. Of the runs 8 ")
    assert confirmed(found(0.95, 0.97), {0: [], 1: []}).verdict.comparisons[0].value is None
    failed = confirmed(found(0.95, 0.97), {0: PRESET, 1: [*MUCH[:4], None]})
    assert failed.best.number == 0 and failed.verdict.comparisons[0].failed == 1
    # Of the preset's own failure there is a pair less.
    assert confirmed(found(0.95, 0.97), {0: [None, *PRESET[1:]], 1: MUCH}).best.number == 1


def test_equal_differences_tell_no_spread():
    """As of a validation split of few images; they would otherwise be an interval of no width."""
    found_ = confirmed(found(0.95, 0.97), {0: [0.9, 0.8, 0.7], 1: [0.91, 0.81, 0.71]}, seeds=3)
    assert found_.best.number == 0 and found_.verdict.comparisons[0].margin is None


def test_chance_names_a_winner_rarely():
    """Of 1,000 sweeps whose trials are all as good as the preset, a fortieth: its side of 95 %."""
    rng, named = np.random.default_rng(0), 0
    for values in rng.normal(0.95, 0.004, (1000, 4, 5)):
        margins = [winner._margin(v - values[0], 3) for v in values[1:]]
        named += any((v - values[0]).mean() > m for v, m in zip(values[1:], margins, strict=True))
    assert 0.01 < named / 1000 < 0.035


def test_who_is_compared():
    whole = found(0.95, 0.99, 0.98, 0.97, 0.96)
    first, *others = whole.trials
    assert [t.number for t in winner.candidates(whole.trials, whole.plan)] == [0, 1, 2, 3]
    again = replace(others[0], params=first.params)
    pruned, theirs = replace(others[1], state="pruned"), replace(others[2], outside=True)
    assert [t.number for t in winner.candidates([first, again, pruned, theirs, others[3]], whole.plan)] == [
        0,
        4,
    ]
    assert winner.candidates([first], whole.plan) == []
    assert winner.candidates([replace(first, state="running"), *others], whole.plan) == []


def ended(study: Study) -> Study:
    """With the preset and four trials that ran to their ends."""
    for i in range(4):
        study.add({**study.record(0).params, "lr": 0.005 + 0.001 * i}, 8)
    for number in range(5):
        study.report(number, 8, 0.9 + 0.01 * number, 8.0 + number, {})
        study.finish(number, "complete")
    return study


def test_runs_are_no_trials_of_the_search_and_go_on_after_a_kill(study):
    study = ended(study)
    # Before it, time is kept for it.
    assert state(study, confirm=3, minutes=60.0).reserved() == 3 * (8 + 10 + 11 + 12)
    assert state(study, confirm=3, minutes=1.0).reserved() == 30
    assert winner.reserve(study.records(), [], plan(), 3, at_once=2) == 3 * (8 + 10 + 11 + 12) / 2
    assert state(study, minutes=60.0).reserved() == state(study, confirm=3).reserved() == 0
    suggested, records = study.suggest(), study.records()
    here = state(study, trials=5, confirm=2, target=0.5, patience=1)
    assert here.stop.is_set() and "target" in here.reason

    def confirming(study: Study, confirm: int = 2) -> Confirming:
        settings = SweepConfig(trials=5, confirm=confirm, target=0.5, patience=1)
        return Confirming(CONFIG, settings, study, SimpleNamespace(count=1, cpus=1), print, None)

    last = confirming(study)
    assert last.waiting() == 8 and not last.stop.is_set() and len(confirming(study).unfinished()) == 8
    drawn = [last.next_trial() for _ in range(5)]
    assert [p["seed"] for _, p in drawn] == [1, 1, 1, 1, 2]
    of = [study.record(number).confirms for number, _ in drawn]
    assert of[0] == of[4] == 0 and len({*of}) == 4
    assert {k: v for k, v in drawn[1][1].items() if k != "seed"} == study.record(of[1]).params
    for number, _ in drawn[:3]:
        last.report(number, {"images": 9, "epoch": 1, "val/accuracy": 0.9, "train_seconds": 1.0})
        assert not last.ends(number) and not last.stop.is_set()
        last.end(number, {}, False)
    # The search doesn't see them, also where another command reads the study; one that was killed calls them running.
    again = Study(study.url, "s", plan())
    assert again.records() == study.records() == records
    assert again.suggest() == study.suggest() == suggested
    assert again.welcome() == [] and len(again.confirmations()) == 8
    state(again, trials=5)
    assert [r.state for r in again.confirmations()] == 3 * ["complete"] + 5 * ["waiting"]
    last = confirming(again)
    assert last.waiting() == 5 and last.next_trial()[0] == drawn[3][0]
    assert confirming(again, 3).waiting() == 4 + 4
    assert again.add(suggested, 8) == 5 + 12
    url = f"{study.url}#s"
    assert len(prior.read(url, plan())) == 5


def test_the_page_and_wandb_have_the_intervals(tmp_path):
    record = confirmed(found(0.95, 0.97, 0.965), {0: PRESET, 1: LUCK, 2: MUCH})
    page = written(tmp_path, record)
    (row,) = [row for row in page.rows if row[:2] == ["2", "5"]]
    assert row[2:5] == ["96.04 %", "95.02 %", "+1.02 points"] and row[-1] == "told apart, better"
    assert "Trial 2 is better than the preset" in page.text and "confirmed with other seeds" in page.text
    assert "gain over the preset" not in page.text and confirming_text(record).endswith(
        "with 5 other seeds each."
    )
    figures = wandb._summary(record, {})
    assert figures["best/trial"] == 2 and figures["confirmation/2/better"] is True
    assert figures["confirmation/1/margin"] == record.verdict.comparisons[0].margin
    kept = written(tmp_path, confirmed(found(0.95, 0.97), {0: PRESET, 1: LUCK}))
    assert "is the preset, which is kept" in kept.text and "not told apart" in kept.text
    assert "Confirmation" not in written(tmp_path, any_record()).text


@pytest.mark.parametrize(
    ("settings", "why"), [({"confirm": 1}, "one seed"), ({"objective": "pareto"}, "--confirm")]
)
def test_what_cant_be_confirmed(settings, why):
    with pytest.raises(BadInput, match=why):
        driver.check(CONFIG, SweepConfig(**{"confirm": 5} | settings), SPACE)


@pytest.mark.faults
def test_a_sweep_killed_while_it_confirms_goes_on(tmp_path):
    arguments = command(tmp_path, "--trials", "3", "--confirm", "2", "--no-early-stopping")
    process = start(arguments)
    runs = [tmp_path / "s" / "trials" / f"{number:04d}" for number in range(3, 9)]
    wait_for(tmp_path, lambda: (runs[1] / "metrics.jsonl").exists(), process)
    kill_with_family(process)
    before = (runs[0] / "metrics.jsonl").read_bytes()
    done = crayon(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runs[0] / "metrics.jsonl").read_bytes() == before
    assert [json.loads((run / "config.json").read_text())["seed"] for run in runs] == 3 * [1] + 3 * [2]
    assert all(len(rows(run)) == rows(run)[-1]["epoch"] for run in runs)
    result = json.loads((tmp_path / "s" / "result.json").read_text())
    assert result["trials"]["complete"] == 3 and result["confirmation"]["missing"] == 0
    assert (
        json.loads((tmp_path / "s" / "best" / "trial.json").read_text())["trial"] == result["best"]["trial"]
    )
    assert result["best"]["trial"] == result["confirmation"]["winner"]


@pytest.mark.faults
def test_confirming_is_cut_by_the_time_and_gone_on_with_on_two_slots(tmp_path):
    """No run that ended is repeated, those under way go on, and W&B gets the runs and the intervals."""

    def run(*more: str) -> tuple[str, dict]:
        done = crayon(*command(tmp_path, "--trials", "3", "--no-early-stopping", "--concurrent", "2", *more))
        assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, (
            done.stdout + done.stderr
        )
        return done.stdout, json.loads((tmp_path / "s" / "result.json").read_text())

    def written() -> dict[int, bytes]:
        return {n: (folder / f"{n:04d}" / "metrics.jsonl").read_bytes() for n in ended()}

    def ended() -> list[int]:
        study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
        return [t.number for t in study.trials if t.state.name == "COMPLETE"]

    folder = tmp_path / "s" / "trials"
    run()
    said, cut = run("--confirm", "3", "--minutes", "0.1")
    missing = cut["confirmation"]["missing"]
    assert missing == 9 + 3 - len(ended()) and ("The time is up." in said) == (missing > 0)
    assert "best" in cut and cut["trials"] == {**cut["trials"], "complete": 3, "waiting": 0}
    before = written()
    said, whole = run("--confirm", "3", "--wandb", "offline")
    assert whole["confirmation"]["missing"] == 0 and len(ended()) == 12
    assert before.items() <= written().items()
    assert whole["best"]["trial"] == whole["confirmation"]["winner"]
    configs = [json.loads((folder / f"{n:04d}" / "config.json").read_text()) for n in range(3, 12)]
    assert sorted(c["seed"] for c in configs) == 3 * [1] + 3 * [2] + 3 * [3]
    assert len([*folder.glob("*/wandb/offline-run-*")]) == 12
    sent = {
        "/".join(i.nested_key) or i.key: json.loads(i.value_json)
        for summary in of_kind(records(tmp_path / "s"), "summary")
        for i in summary.update
    }
    for c in whole["confirmation"]["comparisons"]:
        assert sent[f"confirmation/{c['trial']}/difference"] == c["difference"]
        assert sent.get(f"confirmation/{c['trial']}/margin") == c["margin"]
