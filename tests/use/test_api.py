"""Crayon from Python, in scripts of their own: what they print, what they get, what they are told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from disks import s3_server
from helpers import python, tiny

import crayon
from crayon.system.runfolder import RunFolder

SCRIPT = """
import crayon
config = crayon.preset("mnist", epochs=2, lr=0.003, name="first", storage={storage!r}, workers={workers}, **{small!r})
run = crayon.train(config)
print(run.path.name, len(run.rows), list(run.dataframe()["epoch"]), round(run.result["test/accuracy"], 3) > 0,
      "confusion_matrix" in run.pictures, run.load().job)
"""
SMALL = {
    "data.source": "digits",
    "data.image_size": 16,
    "data.size": 294,
    "global_batch_size": 32,
    "model.width": 8,
    "wandb": "off",
    "device": "cpu",
    "optim.ema_images": 200.0,
}


def run_script(tmp_path, text: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(text)
    return subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=300, cwd=tmp_path)


def test_importing_loads_nothing_heavy_and_every_public_name_is_there():
    process = python(
        "import sys, crayon; print([m for m in ('torch', 'ray', 'numpy', 'optuna') if m in sys.modules], dir(crayon))"
    )
    out = process.communicate(timeout=60)[0]
    assert out.startswith("[] [") and "'train'" in out
    for name in crayon.__all__:
        assert getattr(crayon, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        crayon.trian  # noqa: B018


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_a_script_without_a_main_guard_trains_and_prints_nothing_of_its_own(tmp_path, workers):
    end = run_script(tmp_path, SCRIPT.format(storage=str(tmp_path), workers=workers, small=SMALL))
    assert end.returncode == 0, end.stderr
    assert end.stdout == "first 2 [1, 2] True True mnist\n"
    assert end.stderr == ""


def test_a_run_of_the_same_name_goes_on_and_a_complete_one_is_returned(tmp_path):
    config = tiny("mnist", name="first", storage=str(tmp_path), epochs=2)
    run = crayon.train(config)
    before = run.result
    again = crayon.train(config)
    assert again.result == before and again.uri == run.uri
    assert crayon.Run(run.path).rows == run.rows
    with pytest.raises(crayon.BadInput, match="lr"):
        crayon.train(tiny("mnist", name="first", storage=str(tmp_path), epochs=2, lr=0.5))


def test_a_run_in_an_object_store_is_looked_at_apart_from_where_it_is_staged(tmp_path, own_cache):
    with s3_server() as query:
        config = tiny("mnist", name="run", storage=f"s3://bucket/runs{query}", epochs=2)
        run = crayon.train(config)
        staged = RunFolder(config.storage, "run")
        assert run.path != staged.path and len(run.rows) == 2 and "confusion_matrix" in run.pictures
        assert run.load().job == "mnist"  # by the options of its address, too
        staged.write_bytes("checkpoints/step-000000099.safetensors", b"not uploaded yet")
        staged.append_row("metrics.jsonl", {"epoch": 3, "step": 99})
        assert len(crayon.Run(f"s3://bucket/runs/run{query}").rows) == 2
        assert (
            staged.holds("checkpoints/step-000000099.safetensors")
            and len(staged.read_rows("metrics.jsonl")) == 3
        )
        with pytest.raises(crayon.BadInput, match="There is no run s3://bucket/runs/other"):
            crayon.Run(f"s3://bucket/runs/other{query}")


def test_progress_is_what_the_command_shows(tmp_path, capsys):
    crayon.train(tiny("mnist", name="first", storage=str(tmp_path), epochs=2), progress=True)
    out = capsys.readouterr().out
    assert "accuracy" in out and "report.html" in out


def test_mistakes_are_sentences():
    with pytest.raises(crayon.BadInput, match="There is no job 'mnits'"):
        crayon.preset("mnits")
    with pytest.raises(
        crayon.BadInput, match=r"no setting 'modle\.width' for mnist; did you mean model\.width"
    ):
        crayon.preset("mnist", **{"modle.width": 3})
    with pytest.raises(crayon.BadInput, match="There is no run"):
        crayon.Run("/nowhere/at/all")
    with pytest.raises(crayon.BadInput, match="There is no sweep"):
        crayon.Sweep("/nowhere/at/all")
    with pytest.raises(crayon.BadInput, match="A sweep has no setting 'trails'"):
        crayon.tune(crayon.preset("mnist"), trails=3)


@pytest.mark.faults
def test_a_sweep_from_a_script(tmp_path):
    text = """
import crayon, json
config = crayon.preset("mnist", epochs=2, name="night", storage={storage!r}, **{small!r})
sweep = crayon.tune(config, {{"lr": "1e-3..1e-2:log", "model.width": [4, 8], "epochs": "2", "beta1": "0.9"}}, trials=3)
print(json.dumps([len(sweep.trials), sorted(sweep.study.best_trial.params), sweep.best.load().job,
                  sweep.result["best"]["value"] == sweep.study.best_value, sweep.path.name]))
"""
    end = run_script(tmp_path, text.format(storage=str(tmp_path), small=SMALL))
    assert end.returncode == 0, end.stderr
    assert json.loads(end.stdout) == [3, ["lr", "model.width"], "mnist", True, "night"]
    assert end.stderr == ""
