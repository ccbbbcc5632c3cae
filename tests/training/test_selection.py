"""Which weights become the final model: those of the best validation metric, however the run went on after them."""

from __future__ import annotations

import pytest
import torch
from helpers import rows, tiny
from PIL import Image
from test_trainer import final, make, same, without_clocks

from crayon.errors import Stopped
from crayon.report.events import Event, Message
from crayon.system.runfolder import RunFolder
from crayon.training import checkpoint, worker
from crayon.training.selection import Selection

METRIC = {"mnist": "val/accuracy", "autoencoder": "val/mse"}
SETTINGS = {
    "mnist": {"data__size": 600, "lr": 0.01, "optim__ema_images": 0.0},  # enough to be better than chance
    "autoencoder": {"optim__ema_images": 200.0},
}


@pytest.mark.parametrize("kind", METRIC)
def test_the_final_model_is_measured_with_the_best_weights(kind, tmp_path):
    """Those of the second epoch: then the run was stopped, and resumed with weights that were spoilt."""
    config = tiny(kind, **SETTINGS[kind])
    first = make(config, tmp_path, should_stop=lambda: first.epoch == 2)
    with pytest.raises(Stopped):
        first.fit()
    trainer = make(config, tmp_path)
    trainer.restore()
    assert trainer.step
    with torch.no_grad():
        for parameter in trainer.networks.parameters():
            parameter.neg_()
    trainer.train_epoch()
    trainer.saver.wait()
    values = [row[METRIC[kind]] for row in rows(tmp_path / "run")]
    best = (max if kind == "mnist" else min)(values)
    assert values.index(best) == 1 and len(values) == 3, values  # else the rest says nothing
    assert checkpoint.latest(trainer.run).step == 3 * trainer.steps_per_epoch
    assert checkpoint.best(trainer.run).step == 2 * trainer.steps_per_epoch
    result, measured = worker.conclude(trainer, "")
    assert result["step"] == 2 * trainer.steps_per_epoch and result["epoch"] == 2
    assert result[METRIC[kind]] == best != values[2]
    assert result[METRIC[kind].replace("val", "test")] != best  # another split's
    kept = checkpoint.load(checkpoint.best(trainer.run)).tensors["ema" if trainer.average.on else "weights"]
    assert same(dict(trainer.average.networks.state_dict()), kept)
    if kind == "mnist":  # what the pictures show is the test split's
        task, splits, networks = trainer.task, trainer.splits, trainer.average.networks
        with Image.open(tmp_path / "run" / "pictures" / "mistakes.png") as written:
            pixels = written.convert("RGB").tobytes()
        for images, stats in zip((splits.val, splits.test), measured, strict=True):
            drawn = worker.final_pictures(task, networks, images, stats, None, splits.train, trainer.device)
            assert (drawn["mistakes"].convert("RGB").tobytes() == pixels) == (images is splits.test)


@pytest.mark.parametrize(
    ("kind", "better", "settings"),
    [
        ("mnist", max, SETTINGS["mnist"]),
        ("autoencoder", min, {}),
        ("gan", min, {"eval__every_epochs": 1, "data__size": 64}),
    ],
)
def test_the_best_checkpoint_is_that_of_the_best_metric_in_its_direction(kind, better, settings, tmp_path):
    trainer = make(tiny(kind, checkpoint__keep=9, **settings), tmp_path)
    trainer.fit()
    found = rows(tmp_path / "run")
    values = [row[f"val/{trainer.task.monitor[0]}"] for row in found]
    # Only what was the best so far has the mark. Of those in epochs this short, not all are written.
    records = [v for i, v in enumerate(values) if v not in values[:i] and v == better(values[: i + 1])]
    marked = [entry.step for entry in checkpoint.entries(trainer.run) if entry.best]
    steps = [found[values.index(value)]["step"] for value in records]
    assert set(marked) <= set(steps)
    assert checkpoint.best(trainer.run).step == marked[-1] == steps[-1]
    assert len(set(values)) == len(values)  # else this test says little


def test_an_epoch_that_is_no_better_writes_no_checkpoint_before_its_turn(tmp_path):
    settings = {"epochs": 4, "lr": 1e-9, "checkpoint__keep": 9, "checkpoint__every_epochs": 100}
    trainer = make(tiny("mnist", **settings), tmp_path)
    trainer.fit()
    found = rows(tmp_path / "run")
    values = [row["val/accuracy"] for row in found]
    better = [row["step"] for i, row in enumerate(found) if values[i] > max(values[:i], default=-1)]
    assert len(better) < 3  # it hardly learns
    steps = [entry.step for entry in checkpoint.entries(trainer.run)]
    assert steps == sorted({*better, trainer.total_steps})


@pytest.mark.parametrize("held_out", [True, False])
def test_without_a_test_split_the_validation_split_is_shown_and_without_either_the_last_weights_stand(
    held_out, tmp_path
):
    trainer = make(tiny("mnist", epochs=2), tmp_path)
    trainer.splits = trainer.splits._replace(test=None)
    if not held_out:
        trainer.splits = trainer.splits._replace(val=None)
    trainer.fit()
    result, measured = worker.conclude(trainer, "")
    assert len(measured) == held_out and ("val/accuracy" in result) == held_out
    assert "test/accuracy" not in result and "train/accuracy" in result
    pictures = {path.stem for path in (tmp_path / "run" / "pictures").iterdir()}
    assert ("confusion_matrix" in pictures) == held_out and "learning_curves" in pictures
    if not held_out:
        assert checkpoint.best(trainer.run) is None
        assert result["step"] == trainer.total_steps and result["epoch"] == 2


def test_rows_of_steps_after_the_checkpoint_are_cut_off(tmp_path):
    """A run that was killed between an epoch's row and its checkpoint doesn't have the row twice in the end."""
    trainer = make(tiny("mnist", checkpoint__keep=9), tmp_path)
    trainer.fit()
    whole, told = final(tmp_path), rows(tmp_path / "run")
    for entry in checkpoint.entries(trainer.run)[1:]:
        entry.path.unlink()
    resumed = make(tiny("mnist"), tmp_path)
    resumed.restore()
    assert resumed.step
    assert [row["step"] for row in rows(tmp_path / "run")] == [trainer.steps_per_epoch]
    resumed.fit()
    assert without_clocks(rows(tmp_path / "run")) == without_clocks(told)
    assert same(final(tmp_path), whole)


@pytest.mark.parametrize("lost", ["metric", "checkpoint"])
def test_a_best_that_cannot_be_compared_with_or_used_is_chosen_anew(lost, tmp_path):
    """On another machine the metric may have another name; and the user may have deleted a damaged checkpoint."""
    config = tiny("mnist", epochs=2)
    make(config, tmp_path).fit()
    run = RunFolder(str(tmp_path), "run")
    newest = checkpoint.load(checkpoint.latest(run))
    best = {"metric": "val/accuracy", "value": 2.0, "epoch": 1, "step": 9}
    newest.state["best"] = best | ({"metric": "val/fd_other", "step": 18} if lost == "metric" else {})
    checkpoint.save(run, newest, best=lost == "metric", keep=1)
    told: list[Event] = []
    (tmp_path / "run" / "checkpoints" / "step-000000009.safetensors").unlink(missing_ok=True)
    trainer = make(tiny("mnist", epochs=3), tmp_path, emit=told.append)
    trainer.fit()
    value = rows(tmp_path / "run")[2]["val/accuracy"]
    assert trainer.selection.best == {"metric": "val/accuracy", "value": value, "epoch": 3, "step": 27}
    words = {"metric": "val/fd_other, by which it was chosen, can't be compared with val/accuracy"}
    said = [e.text for e in told if isinstance(e, Message) and "doesn't count" in e.text]
    assert len(said) == 1 and words.get(lost, "it isn't there any more") in said[0]


@pytest.mark.parametrize(("latest", "chosen"), [(False, 1), (True, 3)])
def test_of_equals_the_first_or_the_latest_is_the_best(latest, chosen):
    selection = Selection("accuracy", "max", latest)
    for epoch, value in enumerate((0.5, 0.75, 0.5, 0.75, 0.7)):
        selection.improves({"val/accuracy": value}, epoch, epoch)
    assert selection.best["epoch"] == chosen
