"""Pictures and the page of a sweep: right for usual records, and no record makes them fail."""

from __future__ import annotations

import base64
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from crayon.sweep import axes, page, pictures
from crayon.sweep.records import SweepRecord, TrialRecord
from crayon.sweep.space import Dimension

EVIL = "<script>alert('x')</script>&\"'$x$_{"
SPACE = {
    "epochs": Dimension(name="epochs", kind="int", low=3, high=12),
    "lr": Dimension(name="lr", kind="float", low=5e-4, high=2e-2, log=True),
    "beta1": Dimension(name="beta1", kind="float", low=0.7, high=0.98),
}
WIDE = SPACE | {
    "flip": Dimension(name="flip", kind="choice", choices=(True, False, None)),
    "model.width": Dimension(name="model.width", kind="choice", choices=(1, True, "1", 64)),
    EVIL: Dimension(name=EVIL, kind="choice", choices=(EVIL, "", "日本\n\x07\udc80")),
    "a_very_long_name." * 9: Dimension(name="a_very_long_name." * 9, kind="int", low=1, high=2),
    "narrow": Dimension(name="narrow", kind="float", low=1e-3, high=1.0000001e-3, log=True),
}
DRAW = (
    pictures.history,
    pictures.learning_curves,
    pictures.importances,
    pictures.slices,
    pictures.parallel_coordinates,
    pictures.pareto,
)
NAMES = [draw.__name__ for draw in DRAW]


def draw_params(space, rng):
    return {
        name: rng.choice(d.choices)
        if d.kind == "choice"
        else rng.randint(d.low, d.high)
        if d.kind == "int"
        else math.exp(rng.uniform(math.log(d.low), math.log(d.high)))
        if d.log
        else rng.uniform(d.low, d.high)
        for name, d in space.items()
    }


def record(count=12, space=SPACE, **changes) -> SweepRecord:
    """Trial 0 has 99.00 %, trial 5 is the best with 99.64 %; a third are pruned, trial 7 failed, the last runs."""
    rng = random.Random(0)
    trials = []
    for i in range(count):
        value = 0.99 if i == 0 else 0.9964 if i == 5 else rng.uniform(0.985, 0.996)
        state = "complete" if i % 3 or i == 0 else "pruned"
        state = "failed" if i == 7 else "running" if i == count - 1 else state
        done = 0 if state == "failed" else 4 if state == "complete" else 2
        curve = {e: value - 0.004 * (done - e) for e in range(1, done + 1)}
        trials.append(
            TrialRecord(
                number=i,
                state=state,
                params=draw_params(space, rng),
                value=value if done else None,
                seconds=10.0 * done + rng.random() if done else None,
                epoch=done,
                epochs=4,
                curve=curve,
            )
        )
    return SweepRecord(
        **{
            "name": "mnist-sweep",
            "job": "mnist",
            "metric": "val/accuracy",
            "direction": "max",
            "objective": "quality",
            "space": space,
            "trials": tuple(trials),
            "planned": 20,
            "importances": {"lr": 0.7, "epochs": 0.3},
            "settings": {"sampler": "tpe", "seed": 0},
        }
        | changes
    )


def changed(sweep: SweepRecord, number: int, **changes) -> SweepRecord:
    trials = tuple(replace(t, **changes) if t.number == number else t for t in sweep.trials)
    return replace(sweep, trials=trials)


def pixels(image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def same(one, other) -> bool:
    return one.size == other.size and bool((pixels(one) == pixels(other)).all())


def has(image, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(image) == wanted).all(-1).sum() > 5)


@pytest.fixture(scope="module")
def usual_pictures():
    return pictures.all_pictures(record())


def valueless(sweep: SweepRecord) -> SweepRecord:
    trials = (replace(t, value=None, seconds=None, curve={}) for t in sweep.trials)
    return replace(sweep, trials=tuple(trials), importances={})


# Which pictures there are


def test_there_are_the_pictures_that_make_sense(usual_pictures):
    usual = record()
    assert list(usual_pictures) == NAMES
    assert all(image.width > 300 and image.height > 200 for image in usual_pictures.values())
    assert pictures.all_pictures(valueless(usual)) == {}
    one = replace(usual, trials=usual.trials[:1], importances={})
    assert list(pictures.all_pictures(one)) == ["learning_curves"]
    untimed = replace(usual, trials=tuple(replace(t, seconds=None, curve={}) for t in usual.trials), space={})
    assert list(pictures.all_pictures(untimed)) == ["history", "importances"]


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
    assert shows(pictures.learning_curves, changed(usual, 4, curve={1: 0.9, 2: 0.99}))
    assert shows(pictures.history, changed(usual, 4, state="pruned"))
    assert shows(pictures.learning_curves, changed(usual, 4, state="pruned"))
    assert shows(pictures.pareto, changed(usual, 4, seconds=33.0))
    setting = changed(usual, 4, params={"epochs": 3, "lr": 0.02, "beta1": 0.7})
    assert shows(pictures.slices, setting)
    assert shows(pictures.parallel_coordinates, setting)
    assert shows(pictures.importances, replace(usual, importances={"lr": 0.5, "epochs": 0.3}))


def test_an_axis_of_whole_numbers_has_no_others():
    for epochs in ([1], [1, 2], [3, 3], [1, 40]):
        shown = [value for _, value in axes.numbers_axis("epoch", epochs, whole=True).ticks]
        assert shown and all(value == round(value) for value in shown)


def test_the_best_and_the_preset_stand_out(usual_pictures):
    for name in set(NAMES) - {"importances"}:
        assert has(usual_pictures[name], pictures.BEST), name
        assert has(usual_pictures[name], pictures.PRESET), name
    without = replace(record(), trials=record().trials[1:])
    assert not has(pictures.pareto(without), pictures.PRESET)


def test_what_is_written_beside_the_points(monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(pictures, "_write", lambda ax, x, y, text, *_, **__: written.append(text))
    usual = record()
    pictures.history(usual)
    assert written == ["preset", "99.64 %"]
    written.clear()
    pictures.history(changed(usual, 0, value=0.9999))
    assert written == ["preset, the best"]
    written.clear()
    sweep = replace(usual, trials=usual.trials[:4], objective="pareto")
    for number, (value, seconds) in enumerate([(0.9, 10.0), (0.95, 20.0), (0.94, 30.0), (0.99, 40.0)]):
        sweep = changed(sweep, number, value=value, seconds=seconds, state="complete")
    pictures.pareto(sweep)
    assert written == ["trial 3", "trial 1", "trial 0"]  # trial 2 is slower and worse than trial 1


def test_what_is_no_number_counts_as_no_value():
    usual = record()
    lost, nan = changed(usual, 1, value=None), changed(usual, 1, value=math.nan)
    assert page.finite(replace(nan, trials=nan.trials[1:])).best.number == 5
    for draw in (pictures.history, pictures.parallel_coordinates):
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
        "import sys, crayon.sweep.pictures, crayon.sweep.page; "
        "assert not {'matplotlib', 'torch', 'optuna', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The page


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data + "\n"
        if self.tags and self.tags[-1][0] in ("td", "th"):
            self.rows[-1][-1] += data


def written(folder, sweep, commands=()) -> Page:
    return Page(page.write(folder, sweep, dict(commands)).read_text())


def test_everything_is_on_the_page(tmp_path):
    folder = tmp_path / "sweep"
    (folder / "pictures").mkdir(parents=True)
    usual = changed(record(), 5, params={"epochs": 11, "lr": 0.0123456, "beta1": 0.9})
    pictures.history(usual).save(folder / "pictures" / "history.png")
    pictures.importances(usual).save(folder / "pictures" / "importances.png")
    found = written(folder, usual, {"retrain the best": "jobs/mnist.py --lr 0.0123456", "Go on": "x"})
    for text in (
        "mnist · sweep",
        "mnist-sweep",
        "11 of 20 trials over (7 complete, 3 pruned, 1 failed, 1 running)",
        "objective: highest validation accuracy",
        "sampler: tpe",
        "seed: 0",
        "99.64 %",
        "trial 5",
        "99.00 %",
        "+0.64 points",
        "Retrain the best",
        "jobs/mnist.py --lr 0.0123456",
        "Go on",
    ):
        assert text in found.text, text
    assert [
        "lr",
        "0.01235",
        page.setting_text(usual.trials[0].params["lr"]),
        "0.0005 to 0.02, log-uniform",
    ] in found.rows
    total = sum(t.seconds or 0 for t in usual.trials)
    assert f"{total // 60:.0f} min {total % 60:.0f} s of training in all trials" in found.text
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert [i["alt"] for i in images] == [page.CAPTIONS["history"], page.CAPTIONS["importances"]]
    data = base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,"))
    assert data == (folder / "pictures" / "history.png").read_bytes()


def test_the_table_has_the_best_first_and_the_unfinished_last(tmp_path):
    usual = record()
    rows = written(tmp_path / "sweep", usual).rows[-len(usual.trials) :]
    assert rows[0][:3] == ["5", "complete", "99.64 %"]
    assert [float(row[2].removesuffix(" %")) for row in rows[:10]] == sorted(
        (round(100 * t.value, 2) for t in usual.finished), reverse=True
    )
    assert [row[0] for row in rows[10:]] == ["7", "11"]
    assert [row[:5] for row in rows if row[1] == "failed"] == [["7", "failed", "–", "–", "0 of 4"]]
    assert "0 (preset)" in [row[0] for row in rows]
    lower = written(tmp_path / "sweep", replace(usual, direction="min")).rows[-len(usual.trials) :]
    assert [row[0] for row in lower[:10]] == [row[0] for row in rows[9::-1]]


def test_a_long_table_is_cut(tmp_path):
    usual = record()
    trials = tuple(replace(usual.trials[1], number=i) for i in range(page.MOST_ROWS + 7))
    found = written(tmp_path / "sweep", replace(usual, trials=trials, space={}))
    assert len(found.rows) == page.MOST_ROWS + 1
    assert "and 7 more" in found.text


def test_names_are_escaped_and_the_page_needs_nothing_from_elsewhere(tmp_path):
    sweep = replace(record(12, WIDE), name=f"{EVIL}{{body}}{{title}}", job=EVIL, settings={EVIL: EVIL})
    sweep = replace(changed(sweep, 5, params={EVIL: EVIL}), metric=f"val/{EVIL}")
    text = page.write(tmp_path / "sweep", sweep, {EVIL: f"train --name '{EVIL}'"}).read_text()
    found = Page(text)
    tags = "html meta title style body p h1 h2 div b span table tr th td pre code"
    assert {tag for tag, _ in found.tags} == {*tags.split()}
    assert not [k for _, attrs in found.tags for k in attrs if k.startswith("on")]
    assert found.text.count(EVIL) > 8
    assert found.text.count("{body}{title}") == 2  # title and heading
    assert [tag for tag, _ in found.tags].count("h1") == 1
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import|<link|<script", text)


def test_a_sweep_without_a_value_has_a_page_too(tmp_path):
    found = written(tmp_path / "sweep", valueless(record()))
    assert "cards" not in {attrs.get("class") for _, attrs in found.tags}
    assert "gain" not in found.text
    assert "best configuration" not in found.text
    assert "mnist-sweep" in found.text


@pytest.mark.parametrize(
    ("metric", "best", "preset", "gain"),
    [
        ("val/accuracy", 0.99, 0.98, "+1.00 points"),
        ("val/accuracy", 0.99, 0.99, "none"),
        ("val/mse", 0.003, 0.004, "-25.0 %"),
        ("val/psnr", 22.0, 20.0, "+10.0 %"),
        ("val/score", 0.5, 0.0, "+0.5"),
    ],
)
def test_gain_over_the_preset(tmp_path, metric, best, preset, gain):
    sweep = replace(record(), metric=metric, direction="min" if metric == "val/mse" else "max")
    kept = tuple(t for t in sweep.trials if t.number in (0, 5))
    sweep = changed(changed(replace(sweep, trials=kept), 5, value=best), 0, value=preset)
    text = written(tmp_path / "sweep", sweep).text
    assert f"{gain}\ngain over the preset" in text


def test_of_two_goals_the_front_has_a_table_of_its_own(tmp_path):
    usual = record()
    title = "The best for their training time"
    assert title not in written(tmp_path / "sweep", usual).text
    both = replace(usual, objective="pareto")
    found = written(tmp_path / "sweep", both)
    assert title in found.text
    assert "highest validation accuracy against training time" in found.text
    heads = [i for i, row in enumerate(found.rows) if row[0] == "trial"]
    numbers = [row[0].removesuffix(" (preset)") for row in found.rows[heads[0] + 1 : heads[1]]]
    assert numbers == [str(t.number) for t in both.front]
