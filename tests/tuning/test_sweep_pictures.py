"""Pictures of a sweep: they show its record, and no record makes them fail."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sweep_records import SPACE, WIDE, changed, record, valueless

from crayon.tuning import axes, page, plots

NAMES = {"history", "slices", "parallel_coordinates", "pareto", "learning_curves", "importances"}


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def has(image, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(image) == wanted).all(-1).sum() > 5)


@pytest.fixture(scope="module")
def usual_pictures():
    return plots.all_pictures(record())


def test_there_are_the_pictures_that_make_sense(usual_pictures):
    usual = record()
    assert set(usual_pictures) == NAMES
    assert plots.all_pictures(valueless(usual)) == {}
    one = replace(usual, trials=usual.trials[:1], importances={})
    assert list(plots.all_pictures(one)) == ["learning_curves"]


def strange():
    usual = record()
    equal = (replace(t, value=0.99, seconds=5.0, curve={1: 0.99}) for t in usual.trials)
    return {
        "the preset runs": changed(usual, 0, state="running", value=None, curve={}),
        "the preset is the best": changed(usual, 0, value=0.9999),
        "equal values": replace(usual, trials=tuple(equal)),
        "one setting": record(space={"lr": SPACE["lr"]}),
        "many": record(100, WIDE, metric="val/mse", direction="min", objective="pareto"),
        "two": replace(usual, trials=usual.trials[:2]),
    }


@pytest.mark.parametrize("case", strange())
def test_no_record_makes_them_fail(case, tmp_path):
    sweep = strange()[case]
    for image in plots.all_pictures(sweep).values():
        assert image.mode == "P" and 300 < image.width < 2500 and image.height > 200
    assert "<h1>" in page.write(tmp_path, sweep, {}).read_text()


CHANGES = {
    "value": ({"value": 0.9871}, NAMES - {"importances"}),
    "curve": ({"curve": {1: 0.9, 2: 0.99}}, {"learning_curves"}),
    "state": (
        {"state": "pruned"},
        {"history", "slices", "parallel_coordinates", "learning_curves", "pareto"},
    ),
    "seconds": ({"seconds": 33.0}, {"pareto"}),
    "setting": ({"params": {"epochs": 3, "lr": 0.02, "beta1": 0.7}}, {"slices", "parallel_coordinates"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_trial_changes_the_pictures_that_show_it(usual_pictures, change):
    changes, wanted = CHANGES[change]
    after = plots.all_pictures(changed(record(), 4, **changes))
    assert {n for n in NAMES if not np.array_equal(pixels(after[n]), pixels(usual_pictures[n]))} == wanted


def test_axes_span_the_space_and_count_whole_epochs():
    from matplotlib.figure import Figure

    axes = []

    def kept(figure, *arguments, **options):
        axes.extend(figure.axes)
        return draw(figure, *arguments, **options)

    draw = Figure.savefig
    usual = record()
    near = tuple(replace(t, params=usual.trials[0].params, curve={1: t.reached}) for t in usual.ranked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", kept)
        plots.slices(replace(usual, trials=near))
        settings = [ax for ax in axes if ax.get_xlabel() in SPACE]
        assert settings and all(ax.get_xlim()[0] <= 0 < 1 <= ax.get_xlim()[1] for ax in settings)
        axes.clear()
        plots.learning_curves(replace(usual, trials=near))
        low, high = axes[0].get_xlim()
        assert [tick for tick in axes[0].get_xticks() if low <= tick <= high] == [1]


def test_importances_are_drawn(usual_pictures):
    other = plots.importances(replace(record(), importances={"lr": 0.5, "epochs": 0.3}))
    assert not np.array_equal(pixels(other), pixels(usual_pictures["importances"]))


def test_the_best_and_the_preset_stand_out(usual_pictures):
    for name in NAMES - {"importances"}:
        assert has(usual_pictures[name], plots.BEST), name
        assert has(usual_pictures[name], plots.PRESET), name
    without = changed(record(), 0, state="failed", value=None)
    assert not has(plots.pareto(without), plots.PRESET)


def test_a_trial_far_off_does_not_press_the_others_together():
    from matplotlib.figure import Figure

    def shown(values, **changes) -> tuple[float, float]:
        ax = Figure().subplots()
        axes.value_axis(ax, record(**changes), values)
        return ax.get_ylim()

    values = [t.reached for t in record().ranked]
    low, high = shown(values)
    assert shown([*values, 0.1135]) == (low, high) and low < min(values) < max(values) < high
    assert shown([*values, 7.0], metric="val/mse", direction="min") == (low, high)


def test_importing_them_imports_nothing_heavy():
    code = (
        "import sys, crayon.tuning.plots, crayon.tuning.page, crayon.tuning.terminal; "
        "assert not {'matplotlib', 'torch', 'optuna', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
