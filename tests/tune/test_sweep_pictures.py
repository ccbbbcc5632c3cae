"""Pictures of a sweep: right for usual records, and no record makes them fail."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sweep_records import EVIL, SPACE, WIDE, changed, record, valueless

from crayon.tune import axes, page, plots
from crayon.tune.space import Dimension

DRAW = (
    plots.history,
    plots.learning_curves,
    plots.importances,
    plots.slices,
    plots.parallel_coordinates,
    plots.pareto,
)
NAMES = [draw.__name__ for draw in DRAW]


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def same(one, other) -> bool:
    return one.size == other.size and bool((pixels(one) == pixels(other)).all())


def has(image, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(image) == wanted).all(-1).sum() > 5)


@pytest.fixture(scope="module")
def usual_pictures():
    return plots.all_pictures(record())


# Which pictures there are


def test_there_are_the_pictures_that_make_sense(usual_pictures):
    usual = record()
    assert list(usual_pictures) == NAMES
    assert all(image.width > 300 and image.height > 200 for image in usual_pictures.values())
    assert plots.all_pictures(valueless(usual)) == {}
    one = replace(usual, trials=usual.trials[:1], importances={})
    assert list(plots.all_pictures(one)) == ["learning_curves"]
    untimed = replace(usual, trials=tuple(replace(t, seconds=None, curve={}) for t in usual.trials), space={})
    assert list(plots.all_pictures(untimed)) == ["history", "importances"]


def strange():
    usual = record()
    equal = (replace(t, value=0.99, seconds=5.0, curve={1: 0.99}) for t in usual.trials)
    values = [math.nan, math.inf, None, 0.5, -9e299, 9e299, 10**400, 0, True, 0.99, 0.98, 0.97]
    numbers = zip(usual.trials, values, strict=True)
    one_value = ({"epochs": 4, "lr": 0.001, "beta1": 0.9}, {"epochs": None, "lr": "x"}, {}, {"lr": -1.0})
    return {
        "no trial": replace(usual, trials=(), importances={}),
        "no value": valueless(usual),
        "one trial": replace(usual, trials=usual.trials[:1]),
        "no preset, no dimension": replace(usual, trials=usual.trials[1:3], space={}),
        "equal values": replace(usual, trials=tuple(equal)),
        "no numbers": replace(
            usual,
            trials=tuple(replace(t, value=v, seconds=v, curve={1: v, 2: v}) for t, v in numbers),
            importances={"lr": math.nan, EVIL * 9: -1.0},
        ),
        "strange settings": replace(
            usual, trials=tuple(replace(t, params=one_value[t.number % 4]) for t in usual.trials)
        ),
        "no ranges": replace(
            usual,
            space={
                "lr": Dimension(name="lr", kind="float", log=True),
                "c": Dimension(name="c", kind="choice"),
            },
        ),
        "many": record(200, WIDE, metric=f"val/{EVIL}", direction="min", name=EVIL),
    }


@pytest.mark.parametrize("case", strange())
def test_no_record_makes_them_fail(case, tmp_path):
    sweep = strange()[case]
    for draw in DRAW:
        image = draw(sweep)
        assert image.mode == "RGB"
        assert 300 < image.width < 2500
    text = page.write(tmp_path / "sweep", sweep, {}).read_text()
    assert "<h1>" in text


# What they show


def test_a_change_of_the_record_changes_the_pictures_that_show_it(usual_pictures):
    usual = record()

    def shows(draw, sweep) -> bool:
        return not same(draw(sweep), usual_pictures[draw.__name__])

    value = changed(usual, 4, value=0.9871)
    assert [name for name, draw in zip(NAMES, DRAW, strict=True) if shows(draw, value)] == [
        "history",
        "slices",
        "parallel_coordinates",
        "pareto",
    ]
    assert shows(plots.learning_curves, changed(usual, 4, curve={1: 0.9, 2: 0.99}))
    assert shows(plots.history, changed(usual, 4, state="pruned"))
    assert shows(plots.learning_curves, changed(usual, 4, state="pruned"))
    assert shows(plots.pareto, changed(usual, 4, seconds=33.0))
    setting = changed(usual, 4, params={"epochs": 3, "lr": 0.02, "beta1": 0.7})
    assert shows(plots.slices, setting)
    assert shows(plots.parallel_coordinates, setting)
    assert shows(plots.importances, replace(usual, importances={"lr": 0.5, "epochs": 0.3}))


def test_an_axis_of_whole_numbers_has_no_others():
    for epochs in ([1], [1, 2], [3, 3], [1, 40]):
        shown = [value for _, value in axes.numbers_axis("epoch", epochs, whole=True).ticks]
        assert shown and all(value == round(value) for value in shown)


def test_the_best_and_the_preset_stand_out(usual_pictures):
    for name in set(NAMES) - {"importances"}:
        assert has(usual_pictures[name], plots.BEST), name
        assert has(usual_pictures[name], plots.PRESET), name
    without = replace(record(), trials=record().trials[1:])
    assert not has(plots.pareto(without), plots.PRESET)


def test_what_is_written_beside_the_points(monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(plots, "_write", lambda ax, x, y, text, *_, **__: written.append(text))
    usual = record()
    plots.history(usual)
    assert written == ["preset", "99.64 %"]
    written.clear()
    plots.history(changed(usual, 0, value=0.9999))
    assert written == ["preset, the best"]
    written.clear()
    sweep = replace(usual, trials=usual.trials[:4], objective="pareto")
    for number, (value, seconds) in enumerate([(0.9, 10.0), (0.95, 20.0), (0.94, 30.0), (0.99, 40.0)]):
        sweep = changed(sweep, number, value=value, seconds=seconds, state="complete")
    plots.pareto(sweep)
    assert written == ["trial 3", "trial 1", "trial 0"]  # trial 2 is slower and worse than trial 1


def test_what_is_no_number_counts_as_no_value():
    usual = record()
    lost, nan = changed(usual, 1, value=None), changed(usual, 1, value=math.nan)
    assert page.finite(replace(nan, trials=nan.trials[1:])).best.number == 5
    for draw in (plots.history, plots.parallel_coordinates):
        assert same(draw(lost), draw(nan))


def test_a_trial_far_off_does_not_press_the_others_together():
    usual = record()
    values = [t.value for t in usual.finished]
    near, far = (axes.values_axis(usual, v) for v in (values, [*values, 0.1135]))
    assert [far.place(v) for v in values] == [near.place(v) for v in values]
    assert far.place(0.1135) < -1
    assert min(map(near.place, values)) == 0.0
    assert max(map(near.place, values)) == 1.0
    lower = replace(usual, direction="min", metric="val/mse")
    assert axes.values_axis(lower, [*values, 7.0]).place(7.0) > 1


def test_shares_are_in_percent_and_never_above_a_hundred():
    usual = record()
    axis = axes.values_axis(usual, [1.0] * 4)
    texts = [axis.text(value) for _, value in axis.ticks]
    assert "100 %" in texts
    assert not [t for t in texts if float(t.removesuffix(" %")) > 100]
    other = axes.values_axis(replace(usual, metric="val/psnr"), [20.0, 30.0])
    assert "25" not in texts
    assert [other.text(value) for _, value in other.ticks] == ["20", "22", "24", "26", "28", "30"]
    assert other.label == "validation psnr"


def test_axes_of_settings():
    lr = axes.setting_axis(SPACE["lr"], ())
    assert [round(lr.place(v), 6) for v in (5e-4, math.sqrt(5e-4 * 2e-2), 2e-2)] == [0, 0.5, 1]
    assert [lr.text(v) for _, v in lr.ticks] == ["0.001", "0.003", "0.01"]
    assert [lr.text(v) for _, v in lr.ends] == ["0.0005", "0.02"]
    epochs = axes.setting_axis(SPACE["epochs"], ())
    assert [epochs.text(v) for _, v in epochs.ticks] == ["4", "6", "8", "10", "12"]
    width = axes.setting_axis(WIDE["model.width"], ())
    assert len({width.place(v) for v in (1, True, "1", 64)}) == 4
    assert all(math.isnan(a.place(v)) for a, v in ((lr, None), (lr, -1), (epochs, "4"), (width, 2)))


def test_metrics_in_plain_words():
    assert page.plain("val/accuracy") == "validation accuracy"
    assert page.plain("train/knn_accuracy") == "training knn accuracy"
    assert page.plain("loss") == "loss"


def test_importing_them_imports_nothing_heavy():
    code = (
        "import sys, crayon.tune.plots, crayon.tune.page; "
        "assert not {'matplotlib', 'torch', 'optuna', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
