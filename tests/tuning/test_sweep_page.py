"""The page of a sweep: right for usual records, and no record makes it fail."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from sweep_records import changed, plan, record, valueless

from crayon.system.runfolder import RunFolder
from crayon.tuning import page, plots
from crayon.tuning.wandb import _offline
from crayon.tuning.words import setting_text


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


def written(folder, sweep, commands=(), measured=()) -> Page:
    return Page(page.write(folder, sweep, dict(commands), dict(measured)).read_text())


def test_everything_is_on_the_page(tmp_path):
    folder = tmp_path / "sweep"
    (folder / "pictures").mkdir(parents=True)
    usual = changed(record(), 5, params={"epochs": 11, "lr": 0.0123456, "beta1": 0.9})
    plots.history(usual).save(folder / "pictures" / "history.png")
    plots.importances(usual).save(folder / "pictures" / "importances.png")
    RunFolder.at(folder / "best").write_bytes("report.html", b"")
    measured = {"test/accuracy": 0.9731, "test/f1": 0.5, "val/accuracy": 0.9964}
    found = written(
        folder, usual, {"retrain the best": "jobs/mnist.py --lr 0.0123456", "Go on": "x"}, measured
    )
    facts = "mnist · sweep|mnist-sweep|11 of 20 trials over (7 complete, 3 pruned, 1 failed, 1 running)"
    facts += "|objective: highest val accuracy|sampler: tpe|seed: 0|99.64 %|trial 5|99.00 %|+0.64 points"
    facts += "|97.31 % test accuracy, of its model|best/|Retrain the best|jobs/mnist.py --lr 0.0123456|Go on"
    for text in facts.split("|"):
        assert text in " ".join(found.text.split()), text
    preset = setting_text(usual.trials[0].params["lr"])
    assert ["lr", "0.01235", preset, "0.0005..0.02:log"] in found.rows
    total = sum(t.seconds for t in usual.trials)
    assert f"{total // 60:.0f} min {total % 60:.0f} s of training in all trials" in found.text
    assert [attrs["href"] for tag, attrs in found.tags if tag == "a"] == ["best/report.html"]
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert [i["alt"] for i in images] == [page.CAPTIONS["history"], page.CAPTIONS["importances"]]
    data = base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,"))
    assert data == (folder / "pictures" / "history.png").read_bytes()


def test_the_table_has_the_best_first_and_the_unfinished_last(tmp_path):
    usual = record()
    rows = written(tmp_path, usual).rows[-len(usual.trials) :]
    assert rows[0][:4] == ["5", "complete", "4/4", "99.64 %"]
    values = [row[3].removesuffix(" %") for row in rows[:10]]
    assert values == sorted(values, reverse=True)
    assert [row[:3] for row in rows[10:]] == [["7", "failed", "0/4"], ["11", "running", "2/4"]]
    assert "preset 0" in [row[0] for row in rows]
    lower = written(tmp_path, record(direction="min")).rows[-len(usual.trials) :]
    assert [row[0] for row in lower[:10]] == [row[0] for row in rows[9::-1]]


def test_a_long_table_is_cut(tmp_path):
    found = written(tmp_path, record(page.MOST_ROWS + 7))
    assert len(found.rows) == 4 + 1 + page.MOST_ROWS  # the best configuration, a head, the trials
    assert "and 7 more" in found.text


EVIL = "<script>alert('x')</script>&\"'$x$_{"


def test_names_are_escaped_and_the_page_needs_nothing_from_elsewhere(tmp_path):
    sweep = replace(record(), name=f"{EVIL}{{body}}{{title}}", about={"data": EVIL})
    text = page.write(tmp_path, sweep, {EVIL: f"train --name '{EVIL}'"}).read_text()
    found = Page(text)
    tags = "html meta title style body main p h1 h2 div b span table tr th td pre code"
    assert {tag for tag, _ in found.tags} == {*tags.split()}
    assert not [k for _, attrs in found.tags for k in attrs if k.startswith("on")]
    assert found.text.count(EVIL) == 5
    assert found.text.count("{body}{title}") == 2  # title and heading
    assert not re.search(r"https?:|src=\"(?!data:)|href|@import|<link|<script", text)


def test_a_sweep_without_a_value_has_a_page_too(tmp_path):
    found = written(tmp_path / "sweep", valueless(record()))
    assert "gain" not in found.text and "best configuration" not in found.text
    assert "mnist-sweep" in found.text


@pytest.mark.parametrize(
    ("metric", "best", "preset", "gain"),
    [
        ("val/accuracy", 0.99, 0.98, "+1.00 points"),
        ("val/mse", 0.003, 0.004, "-25.0 %"),
        ("val/score", 0.5, 0.0, "+0.5"),
    ],
)
def test_gain_over_the_preset(tmp_path, metric, best, preset, gain):
    sweep = record(metric=metric, direction="min" if metric == "val/mse" else "max")
    kept = tuple(t for t in sweep.trials if t.number in (0, 5))
    sweep = changed(changed(replace(sweep, trials=kept), 5, value=best), 0, value=preset)
    text = written(tmp_path / "sweep", sweep).text
    assert f"{gain}\ngain over the preset" in text


def test_of_two_goals_the_front_has_a_table_of_its_own(tmp_path):
    usual = record()
    title = "The best for their training time"
    assert title not in written(tmp_path / "sweep", usual).text
    both = replace(usual, plan=plan(objective="pareto"))
    found = written(tmp_path / "sweep", both)
    assert title in found.text
    assert "highest val accuracy against training time" in found.text
    heads = [i for i, row in enumerate(found.rows) if row[0] == "trial"]
    numbers = [row[0].removeprefix("preset ") for row in found.rows[heads[0] + 1 : heads[1]]]
    assert numbers == [str(t.number) for t in both.front]


def test_offline_runs_of_others_are_not_uploaded_with_the_trials(tmp_path, monkeypatch):
    for number, own in enumerate(("aa", "bb")):
        (tmp_path / "trials" / f"{number:04d}").mkdir(parents=True)
        (tmp_path / "trials" / f"{number:04d}" / "wandb_id").write_text(own + "\n")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    assert _offline(RunFolder.at(tmp_path)) == f"{tmp_path}/trials/*/wandb/offline-run-*"
    monkeypatch.setenv("WANDB_DIR", "/my runs")
    here = "'/my runs'/wandb/offline-run-*-"
    assert _offline(RunFolder.at(tmp_path)) == f"{here}aa {here}bb"
