"""The benchmark suite: nothing measured is lost or measured twice, ratios are of one repetition, turns are turns."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TRAINER = BENCHMARKS.parent / "src" / "crayon" / "training" / "loop.py"
sys.path.insert(0, str(BENCHMARKS))

import run as command  # noqa: E402
from cost_model import Costs, all_reduce, line_fit, predict, table  # noqa: E402
from problems import Pool  # noqa: E402
from searchers import search  # noqa: E402
from suite import stalls  # noqa: E402
from suite.harness import Benchmark, Bound, Case, Ratio, values_of  # noqa: E402
from suite.processes import Failed, Side, rate_within, rates  # noqa: E402
from suite.settings import Missing, Settings, find  # noqa: E402
from suite.table import markdown  # noqa: E402


class Trivial:
    """A benchmark of two arms that counts what it measures; "slow" takes 3 s, then 6 s, ... and ours a third of it."""

    def __init__(self):
        self.measured: list[str] = []
        self.fails = False

    def part(self, arm: str):
        def measure():
            if arm == "slow" and self.fails:
                raise KeyboardInterrupt
            self.measured.append(arm)
            times = self.measured.count(arm)
            return {arm: {"s": 3.0 * times if arm == "slow" else 1.0 * times}}

        return measure

    def benchmark(self) -> Benchmark:
        ratios = (Ratio("slow / ours", "s", ("slow", "ours"), "more", 2.0), Bound("ours", "s", "ours", 0.5))
        parts = {arm: self.part(arm) for arm in ("ours", "slow")}
        return Benchmark("trivial", "a title", 0.1, lambda settings: [Case("case", parts, ratios)])


@pytest.fixture
def trivial():
    return Trivial()


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path, trivial):
    settings = Settings(quick=True)
    assert command.run(trivial.benchmark(), settings, 2, tmp_path)
    assert sorted(trivial.measured) == ["ours", "ours", "slow", "slow"]
    written = (tmp_path / "trivial.json").read_text()
    assert command.run(trivial.benchmark(), settings, 2, tmp_path)
    assert len(trivial.measured) == 4
    assert (tmp_path / "trivial.json").read_text() == written
    assert command.run(trivial.benchmark(), settings, 3, tmp_path)
    assert len(trivial.measured) == 6
    kept = json.loads((tmp_path / "trivial.json").read_text())
    assert kept["cases"]["case"][:2] == json.loads(written)["cases"]["case"]
    assert kept["environment"]["torch"] and kept["environment"]["cpu_cores"] >= 1


def test_the_record_has_no_path_of_this_machine(tmp_path, trivial):
    folder = tmp_path / "data"
    folder.mkdir()
    command.run(trivial.benchmark(), Settings(mnist=str(folder), faces=str(folder)), 1, tmp_path)
    written = (tmp_path / "trivial.json").read_text()
    assert str(tmp_path) not in written
    assert json.loads(written)["settings"]["data"]["mnist"] == "MNIST"


def test_a_run_that_is_cut_off_goes_on_with_the_part_that_is_missing(tmp_path, trivial):
    trivial.fails = True
    with pytest.raises(KeyboardInterrupt):
        command.run(trivial.benchmark(), Settings(), 1, tmp_path)
    assert trivial.measured == ["ours"]
    trivial.fails = False
    command.run(trivial.benchmark(), Settings(), 1, tmp_path)
    assert trivial.measured == ["ours", "slow"]


def test_a_part_that_fails_is_told_and_tried_again(tmp_path, trivial, capsys):
    benchmark = trivial.benchmark()
    (case,) = benchmark.cases(Settings())

    def fails():
        raise Failed("exit code 1: no such file")

    broken = Benchmark("trivial", "t", 1, lambda s: [Case("case", case.parts | {"ours": fails})])
    assert not command.run(broken, Settings(), 2, tmp_path)
    assert "ours failed: exit code 1: no such file" in capsys.readouterr().out
    assert trivial.measured == ["slow", "slow"]
    assert command.run(benchmark, Settings(), 2, tmp_path)
    assert trivial.measured == ["slow", "slow", "ours", "ours"]


def test_the_order_of_the_arms_changes_with_the_repetition(tmp_path, trivial):
    command.run(trivial.benchmark(), Settings(), 2, tmp_path)
    assert trivial.measured == ["ours", "slow", "slow", "ours"]


def test_results_under_other_settings_are_not_mixed(tmp_path, trivial):
    command.run(trivial.benchmark(), Settings(quick=True), 1, tmp_path)
    with pytest.raises(Missing, match="other settings \\(quick\\)"):
        command.run(trivial.benchmark(), Settings(), 1, tmp_path)


def test_only_some_of_the_cases(tmp_path, trivial):
    both = trivial.benchmark().cases(Settings())
    other = [Case("other", {"fast": trivial.part("fast")}, ())]
    benchmark = Benchmark("trivial", "a title", 0.1, lambda settings: both + other)
    command.run(benchmark, Settings(), 1, tmp_path, only="oth")
    assert trivial.measured == ["fast"]
    assert list(json.loads((tmp_path / "trivial.json").read_text())["cases"]) == ["other"]
    with pytest.raises(Missing, match="No case of trivial begins with 'x'; there are case, other"):
        command.run(benchmark, Settings(), 1, tmp_path, only="x")


def test_the_table_has_medians_of_ratios_within_repetitions_and_says_what_is_reached(tmp_path, trivial):
    command.run(trivial.benchmark(), Settings(), 3, tmp_path)
    text = markdown(json.loads((tmp_path / "trivial.json").read_text()), ("a note",))
    assert "- a note\n" in text
    assert "| s: median (range) | ours | slow |" in text
    assert "| case | 2 (1–3) | 6 (3–9) |" in text
    assert "| case | slow / ours | 3 | 3–3 | 3 | ≥ 2 | yes |" in text
    assert "| case | ours | 2 | 1–3 | 3 | ≤ 0.5 | **no** |" in text


def test_an_arm_that_gave_up_makes_the_ratio_a_bound():
    parts = {
        "p": {"ours": {"s": 10.0, "gave_up_after_s": 11.0}, "peer": {"s": None, "gave_up_after_s": 50.0}}
    }
    repetitions = [{"parts": parts}]
    assert values_of(Ratio("", "s", ("peer", "ours")), repetitions) == ([5.0], ">")
    assert values_of(Ratio("", "s", ("ours", "peer")), repetitions) == ([0.2], "<")
    assert values_of(Ratio("", "s", ("ours", "absent")), repetitions) == ([], "")


def test_every_benchmark_is_listed_and_has_cases_without_any_data(capsys):
    families = {
        path.stem for path in (BENCHMARKS / "suite").glob("*.py") if "\nBENCHMARK = " in path.read_text()
    }
    assert families == set(command.NAMES)
    assert command.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(command.NAMES)
    for name in command.NAMES:
        benchmark = command.get(name)
        assert benchmark.name == name and benchmark.minutes > 0
        for quick in (True, False):
            cases = benchmark.cases(Settings(quick=quick))
            assert cases and len({case.name for case in cases}) == len(cases)
            assert all(case.parts for case in cases)


def test_mistakes_end_in_one_sentence(capsys):
    assert command.main(["steady", "--mnist", "/nowhere"]) == 2
    assert capsys.readouterr().err == "error: --mnist /nowhere: there is no such folder.\n"
    with pytest.raises(SystemExit, match="2"):
        command.main(["fast"])
    assert "there is no benchmark 'fast'" in capsys.readouterr().err


def test_data_is_found_under_one_root(tmp_path):
    for name in ("MNIST", "cifar10-jpeg", "faces"):
        (tmp_path / name).mkdir()
    found = find(str(tmp_path), None, None, None)
    assert found == {
        "mnist": str(tmp_path),
        "cifar10": str(tmp_path / "cifar10-jpeg"),
        "faces": str(tmp_path / "faces"),
    }


TICKER = """
import json, sys, time
done = 0
while True:
    done += int(sys.argv[2])
    with open(sys.argv[1], "a") as told:
        told.write(json.dumps({"at": time.time(), "images": done}) + "\\n")
    time.sleep(0.02)
"""


def test_while_one_side_is_measured_the_others_stand_still():
    sides = {}
    try:
        for name, rate in (("slow", 1), ("fast", 3)):
            sides[name] = Side([sys.executable, "-c", TICKER, "{told}", str(rate)])
            assert sides[name].first_step() > 0
            sides[name].stop()
        begun = time.time()
        found = rates(sides, turns=2, turn=0.3, settle=0.05)
        assert 2 < found["fast"] / found["slow"] < 4
        both = [[step["at"] for step in side.steps() if step["at"] > begun + 0.02] for side in sides.values()]
        turns = sorted((at, name) for name, ats in zip(sides, both, strict=True) for at in ats)
        changes = sum(a[1] != b[1] for a, b in itertools.pairwise(turns))
        assert changes <= 3, "they ran at once"
    finally:
        for side in sides.values():
            side.end()
    for side in sides.values():
        assert side.process.poll() is not None and not side.folder.exists()


def test_a_rate_is_counted_inside_its_windows_alone():
    steps = [{"at": float(t), "images": 10 * t if t < 5 else 1000 * t} for t in range(10)]
    assert rate_within(steps, [(1.0, 4.0)]) == 10
    assert rate_within(steps, [(1.0, 1.5)]) is None


def test_the_probe_tells_of_what_the_trainer_really_has(tmp_path, monkeypatch):
    told = tmp_path / "told"
    monkeypatch.setenv("CRAYON_PROBE", str(told))
    monkeypatch.setenv("CRAYON_PROBE_PATH", str(BENCHMARKS))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    spec = importlib.util.spec_from_file_location(
        "probe", BENCHMARKS / "suite" / "probe" / "sitecustomize.py"
    )
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    (trainer,) = (n for n in ast.parse(TRAINER.read_text()).body if getattr(n, "name", "") == "Trainer")
    has = {node.name for node in trainer.body if isinstance(node, ast.FunctionDef)}

    class Fake:
        group = type("Group", (), {"rank": 0})
        epoch = images_seen = 7

    for name in ("after_step", "save", "end_epoch", "evaluate", "train_epoch"):
        assert name in has
        setattr(Fake, name, lambda self: None)
    assert {"group", "epoch", "images_seen"} <= has | {"group"}
    probe._watch(Fake)
    Fake().after_step()
    Fake().save()
    steps, saves = (json.loads(line) for line in told.read_text().splitlines())
    assert steps["images"] == 7 and saves["what"] == "save" and saves["seconds"] >= 0


def test_stalls_are_shares_of_the_epochs_after_the_first():
    lines = []
    for epoch, save in ((1, 5.0), (2, 0.1), (3, 0.3)):
        lines += [
            {"what": "evaluate", "seconds": 1.0},
            {"what": "save", "seconds": save},
            {"what": "end_epoch", "seconds": 1.0 + save + 0.2},
            {"what": "train_epoch", "seconds": 10.0, "epoch": epoch},
        ]
    found = stalls.shares(lines)
    assert found["checkpoint, % of the epoch"] == pytest.approx(2.0)
    assert found["logging and the rest, ms"] == pytest.approx(200.0)
    assert found["evaluation, % of the epoch"] == pytest.approx(10.0)
    assert found["epochs measured"] == 2


# The cost model.


def test_a_ring_moves_the_gradients_twice_but_for_one_share():
    c = Costs(gradient_bytes=100e6, bandwidth=1e9, latency=1e-3, buckets=1)
    assert all_reduce(c, 1) == 0
    assert all_reduce(c, 2) == pytest.approx(0.1 + 2e-3)
    assert all_reduce(c, 4) == pytest.approx(1.5 * 0.1 + 6e-3)
    assert all_reduce(c, 1024) == pytest.approx(2 * 0.1 + 20e-3), "a tree has fewer messages"


def test_prediction_of_one_worker_is_its_own_rate():
    c = Costs(fixed=0.01, per_image=1e-4, batch=100, strong_batch=100, images=10**9, storage=1e15)
    for strong in (False, True):
        p = predict(c, 1, strong=strong)
        assert p.images_per_second == pytest.approx(100 / 0.02, rel=1e-3)
        assert p.efficiency == pytest.approx(1, rel=1e-3)
    assert predict(c, 1).bottleneck == "computing"


def test_summing_is_hidden_in_the_backward_pass_until_it_is_longer():
    hidden = Costs(overlap=1.0, backward=0.5, gradient_bytes=1e6, bandwidth=1e9, latency=0.0)
    assert predict(hidden, 8).shares["gradients"] == 0
    slow = predict(Costs(overlap=1.0, backward=0.5, gradient_bytes=1e9, bandwidth=1e9, latency=0.0), 8)
    assert slow.bottleneck == "gradients" and slow.efficiency < 0.1
    assert sum(slow.shares.values()) == pytest.approx(1)


def test_more_workers_are_never_more_efficient_and_the_table_has_all_sizes():
    c = Costs()
    efficiencies = [predict(c, n).efficiency for n in (1, 8, 64, 1024)]
    assert efficiencies == sorted(efficiencies, reverse=True)
    text = table(c)
    assert all(f"| {n:,} |" in text for n in (8, 16, 32, 64, 128, 256, 512, 1024))


def test_a_line_is_fitted_exactly_and_never_below_zero():
    assert line_fit([(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]) == pytest.approx((3.0, 2.0))
    a, b = line_fit([(1.0, 1.0), (2.0, 3.0)])
    assert a == 0 and b > 0


def test_searches_spend_equal_epochs_and_begin_with_the_preset(tmp_path):
    about = {"job": "mnist", "flags": ["--epochs", "4"], "metric": "val/accuracy", "direction": "max"}
    (tmp_path / "pool.json").write_text(json.dumps(about | {"trials": []}))
    pool = Pool.read(tmp_path / "pool.json")
    for point in pool.grid():
        curve = [
            {"value": 1 - abs(point["lr"] - 0.008) / epoch, "seconds": epoch, "images": 3_000}
            for epoch in range(1, point["epochs"] + 1)
        ]
        pool.trials.append({"params": point, "curve": curve})
    epochs, curve = pool.trial(pool.preset | {"lr": 0.0041})
    preset = [epoch["value"] for epoch in curve]
    assert epochs == len(preset) == 4
    for method in ("ours", "ray", "optuna"):
        best = search(method, pool, 0, 8)
        assert best[:4] == preset and len(best) == 8 and best == sorted(best)
